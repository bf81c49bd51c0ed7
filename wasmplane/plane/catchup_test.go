package plane

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// encodeList is a list of metadata as the API server sends it. Objects are given as
// "uid@version".
func encodeList(revision string, objects ...string) []byte {
	list := &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: revision}}
	for _, o := range objects {
		uid, version, _ := strings.Cut(o, "@")
		list.Items = append(list.Items, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Name: "n", Namespace: "ns", UID: types.UID(uid), ResourceVersion: version, Labels: map[string]string{"a": "b"},
		}})
	}
	raw, err := list.Marshal()
	if err != nil {
		panic(err)
	}
	unknown := k8sruntime.Unknown{TypeMeta: k8sruntime.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadataList"}, Raw: raw}
	b, err := unknown.Marshal()
	if err != nil {
		panic(err)
	}
	return append([]byte("k8s\x00"), b...)
}

// TestCatchUp: a watch that has expired goes on without a word to the guest if, and
// only if, the guest has missed nothing.
func TestCatchUp(t *testing.T) {
	sum := func(uids ...string) (m members) {
		m.known = true
		for _, uid := range uids {
			m.note(event{UID: uid}, 1)
		}
		return m
	}
	expired := `{"type":"ERROR","object":{"kind":"Status","code":410}}` + "\n"
	changes := object("ADDED", "c", "51", nil) + object("MODIFIED", "a", "52", nil) + object("DELETED", "b", "53", nil)
	for name, c := range map[string]struct {
		members members // the guest has seen them up to version 50
		watch   script
		list    []byte // nil: the server refuses
		silent  bool   // nothing is delivered
		lists   int
	}{
		"nothing happened":       {sum("a", "b"), script{code: 410}, encodeList("900", "b@50", "a@7"), true, 1},
		"said by an event":       {sum("a", "b"), script{200, expired, false}, encodeList("900", "b@50", "a@7"), true, 1},
		"empty, as before":       {sum(), script{code: 410}, encodeList("900"), true, 1},
		"one changed":            {sum("a", "b"), script{code: 410}, encodeList("900", "b@50", "a@51"), false, 1},
		"one more":               {sum("a", "b"), script{code: 410}, encodeList("900", "a@7", "b@8", "c@9"), false, 1},
		"one less":               {sum("a", "b"), script{code: 410}, encodeList("900", "a@7"), false, 1},
		"one for another":        {sum("a", "b"), script{code: 410}, encodeList("900", "a@7", "c@8"), false, 1},
		"all gone":               {sum("a", "b"), script{code: 410}, encodeList("900"), false, 1},
		"list refused":           {sum("a", "b"), script{code: 410}, nil, false, 1},
		"list without a version": {sum("a", "b"), script{code: 410}, encodeList("", "a@7", "b@8"), false, 1},
		"list with bad versions": {sum("a", "b"), script{code: 410}, encodeList("900", "a@x", "b@8"), false, 1},
		"list is no list":        {sum("a", "b"), script{code: 410}, []byte("{}"), false, 1},
		"unknown":                {members{}, script{code: 410}, encodeList("900"), false, 0},
		"not allowed any more":   {sum("a", "b"), script{code: 403}, encodeList("900", "a@7", "b@8"), false, 0},
		"after events":           {sum("uid-a", "uid-b"), script{200, changes + expired, false}, encodeList("900", "uid-a@52", "uid-c@51"), false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := &watchServer{scripts: []script{c.watch, {200, "", true}}}
			lists := 0
			b := newBare(t, controllers.Declaration{}, roundTripFunc(func(r *http.Request) (*http.Response, error) {
				q := r.URL.Query()
				if q.Has("watch") {
					return w.RoundTrip(r)
				}
				lists++
				if q.Get("labelSelector") != "app=x" || len(q) != 1 || r.Method != http.MethodGet || r.Header.Get("Accept") != metadataList {
					t.Errorf("lists with %s and %v", r.URL, r.Header)
				}
				if c.list == nil {
					return text(http.StatusTooManyRequests, ""), nil
				}
				return text(http.StatusOK, string(c.list)), nil
			}))
			x, err := b.resumeExchange(snapshot.Stream{ID: 1, URL: "/things?watch=1&labelSelector=app%3Dx&resourceVersion=3&timeoutSeconds=5", Revision: "50",
				MembersKnown: c.members.known, Members: c.members.sum})
			if err != nil {
				t.Fatal(err)
			}
			b.mu.Lock()
			b.exchanges[1] = x
			b.launch(x)
			b.mu.Unlock()
			asked := func() string {
				w.mu.Lock()
				defer w.mu.Unlock()
				return fmt.Sprint(w.queries)
			}
			switch {
			case c.silent:
				b.until("the watch to go on", func() bool { return asked() == "[50  900 ]" })
				if n := b.pushed.Load(); n != 0 {
					t.Errorf("%d frames", n)
				}
				b.mu.Lock()
				if s := x.snapshotStream(); s.Revision != "900" || s.Members != c.members.sum || !s.MembersKnown {
					t.Errorf("saved as %+v", s)
				}
				b.mu.Unlock()
			case name == "after events": // the guest was given these, and then nothing
				b.until("the watch to go on", func() bool { return asked() == "[50  900 ]" })
				if n := b.pushed.Load(); n != 3 {
					t.Errorf("%d frames, want three events", n)
				}
			default:
				b.until("the end", func() bool { return len(b.exchanges) == 0 })
				want := int32(1) // the end
				if c.watch.body != "" {
					want++
				}
				if n := b.pushed.Load(); n != want {
					t.Errorf("%d frames, want %d", n, want)
				}
			}
			if lists != c.lists {
				t.Errorf("%d lists, want %d", lists, c.lists)
			}
		})
	}
}

func FuzzDecodeMetadataList(f *testing.F) {
	f.Add(encodeList("900", "a@7", "b@8"))
	f.Add(encodeList("1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeMetadataList(b)
		if err == nil && (l.revision == "" || l.revision == "0") {
			t.Errorf("%+v", l)
		}
	})
}

// TestCaughtUp: a resumed guest may go on sleeping only if none of its watches has
// missed anything, however long the API server takes to say so.
func TestCaughtUp(t *testing.T) {
	known := func(uid string) members {
		var m members
		m.known = true
		m.note(event{UID: uid}, 1)
		return m
	}
	for name, c := range map[string]struct {
		members  members
		list     []byte
		refusals int32 // before it lists
		want     error
		revision string
	}{
		"nothing happened":         {known("a"), encodeList("900", "a@50"), 0, nil, "900"},
		"the server was not ready": {known("a"), encodeList("900", "a@50"), 2, nil, "900"},
		"something happened":       {known("a"), encodeList("900", "a@51"), 0, errMissed, "50"},
		"nobody can tell":          {members{}, nil, 0, nil, "50"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			b := newBare(t, controllers.Declaration{}, roundTripFunc(func(*http.Request) (*http.Response, error) {
				if asked.Add(1) <= c.refusals {
					return text(http.StatusTooManyRequests, ""), nil
				}
				return text(http.StatusOK, string(c.list)), nil
			}))
			x, err := b.resumeExchange(snapshot.Stream{ID: 1, URL: "/things?watch=1", Revision: "50", MembersKnown: c.members.known, Members: c.members.sum})
			if err != nil {
				t.Fatal(err)
			}
			b.mu.Lock()
			b.exchanges[1] = x
			b.mu.Unlock()
			if err := b.caughtUp(t.Context()); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if x.delivered != c.revision {
				t.Errorf("at version %s, want %s", x.delivered, c.revision)
			}
			b.mu.Lock()
			delete(b.exchanges, 1) // it was never launched
			b.mu.Unlock()
		})
	}
}
