package plane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// world is an API server of one resource, /objects, which can be listed, and
// watched from any version that it remembers.
type world struct {
	mu      sync.Mutex
	changed chan struct{}
	events  []string // event k has version k+2
	objects map[string]stored
	oldest  int // version from which it can be watched
	cut     int // events after which each watch is ended; 0: never
	watches int // that were asked for
	open    int // that go on
	awaited int // changes that are waited for
	lists   int // that were asked for
	ended   int // how often all watches were ended

	// encode makes an event as in protobuf; nil: events are lines of JSON.
	encode func(typ string, meta metav1.ObjectMeta, value string) []byte
}

// stored is an object as it is now.
type stored struct{ uid, revision, value string }

// api is the world as one user sees it, with /results, where its guest leaves what
// it made of the objects.
type api struct {
	*world
	results map[string]string
	refuse  []int // answers to the next watches; 0: none
}

func newAPI() *api {
	w := &world{changed: make(chan struct{}), objects: map[string]stored{}}
	return w.user()
}

// user is another user of the same world.
func (w *world) user() *api { return &api{world: w, results: map[string]string{}} }

// put adds an event.
func (w *world) put(typ, name, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := stored{w.objects[name].uid, strconv.Itoa(len(w.events) + 2), value}
	if o.uid == "" {
		o.uid = "uid-" + name + "-" + o.revision
	}
	switch typ {
	case "DELETED":
		delete(w.objects, name)
	case "ADDED", "MODIFIED":
		w.objects[name] = o
	}
	w.events = append(w.events, w.event(typ, name, o, nil))
	w.announce()
}

// event is one of a watch.
func (w *world) event(typ, name string, o stored, annotations map[string]string) string {
	if w.encode != nil {
		return string(w.encode(typ, metav1.ObjectMeta{Name: name, UID: types.UID(o.uid), ResourceVersion: o.revision, Annotations: annotations}, o.value))
	}
	b, _ := json.Marshal(map[string]any{"type": typ, "object": map[string]any{
		"metadata": map[string]any{"name": name, "uid": o.uid, "resourceVersion": o.revision, "annotations": annotations},
		"value":    o.value,
	}})
	return string(b) + "\n"
}

// UpTo implements Changes.
func (w *world) UpTo(_ string, since uint64) uint64 { return since }

// Await implements Changes.
func (w *world) Await(_ string, since uint64, changed func(before uint64)) (stop func(), ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if uint64(len(w.events)+1) > since {
		return nil, false
	}
	w.awaited++
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.awaited--
			w.announce()
		}()
		for {
			w.mu.Lock()
			now, next := uint64(len(w.events)+1), w.changed
			w.mu.Unlock()
			if now > since {
				changed(since)
				return
			}
			select {
			case <-next:
			case <-ctx.Done():
				return
			}
		}
	}()
	return cancel, true
}

// state is every object with its value, as the guest "mirror" puts it.
func (w *world) state() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	values := map[string]string{}
	for name, o := range w.objects {
		values[name] = o.value
	}
	return fmt.Sprint(values)
}

// forget ends every watch, and can go on only from the present: the API server
// has restarted.
func (w *world) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.oldest = len(w.events) + 1
	w.ended++
	w.announce()
}

// endWatches ends every watch that has come to the present.
func (w *world) endWatches() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended++
	w.announce()
}

// announce wakes who waits for a change; world.mu is held.
func (w *world) announce() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *world) version() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return int64(len(w.events) + 1)
}

func (a *api) got() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.results)
}

// await waits until cond holds for the results.
func (a *api) await(t *testing.T, what string, cond func(map[string]string) bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		a.mu.Lock()
		ok, changed := cond(a.results), a.changed
		a.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("no %s after 30 s; results: %v", what, a.got())
		}
	}
}

// RoundTrip implements http.RoundTripper.
func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	if name, ok := strings.CutPrefix(r.URL.Path, "/results/"); ok {
		value, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		a.results[name] = string(value)
		a.announce()
		a.mu.Unlock()
		return respond(http.StatusOK, io.NopCloser(strings.NewReader("ok"))), nil
	}
	query := r.URL.Query()
	if !query.Has("watch") {
		return respond(http.StatusOK, io.NopCloser(bytes.NewReader(a.list()))), nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watches++
	a.announce()
	answer := 0
	if len(a.refuse) > 0 {
		answer, a.refuse = a.refuse[0], a.refuse[1:]
	}
	from, initial := len(a.events)+1, ""
	if query.Get("sendInitialEvents") == "true" {
		initial = a.initialEvents()
	} else {
		var err error
		if from, err = strconv.Atoi(query.Get("resourceVersion")); err != nil {
			return nil, err
		}
		if answer == 0 && from < a.oldest {
			answer = http.StatusGone
		}
	}
	switch answer {
	case 0:
	case http.StatusOK: // which is not the last word
		return respond(answer, io.NopCloser(strings.NewReader(`{"type":"ERROR","object":{"kind":"Status","code":410}}`+"\n"))), nil
	default:
		return respond(answer, io.NopCloser(strings.NewReader("refused"))), nil
	}
	a.open++
	pr, pw := io.Pipe()
	go a.serve(r.Context(), pw, initial, from, a.cut, a.ended)
	resp := respond(http.StatusOK, pr)
	if a.encode != nil {
		resp.Header.Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
	}
	return resp, nil
}

// list is the metadata of all objects.
func (w *world) list() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lists++
	var items []string
	for _, o := range w.objects {
		items = append(items, o.uid+"@"+o.revision)
	}
	return encodeList(strconv.Itoa(len(w.events)+1), items...)
}

// initialEvents are the state as events; world.mu is held.
func (w *world) initialEvents() string {
	var lines strings.Builder
	for name, o := range w.objects {
		lines.WriteString(w.event("ADDED", name, o, nil))
	}
	now := stored{revision: strconv.Itoa(len(w.events) + 1)}
	lines.WriteString(w.event(bookmark, "", now, map[string]string{initialEndAnnotation: "true"}))
	return lines.String()
}

// serve writes a watch.
func (w *world) serve(ctx context.Context, pw *io.PipeWriter, initial string, from, cut, ended int) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.open--
		w.announce()
	}()
	if _, err := io.WriteString(pw, initial); err != nil {
		return
	}
	for n := from - 1; cut == 0 || n < from-1+cut; n++ {
		w.mu.Lock()
		for n >= len(w.events) {
			changed, over := w.changed, w.ended != ended
			w.mu.Unlock()
			if over {
				pw.Close()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				pw.CloseWithError(ctx.Err())
				return
			}
			w.mu.Lock()
		}
		e := w.events[n]
		w.mu.Unlock()
		if _, err := io.WriteString(pw, e); err != nil {
			return
		}
	}
	pw.Close()
}

func respond(code int, body io.ReadCloser) *http.Response {
	return &http.Response{StatusCode: code, Status: fmt.Sprint(code), Header: http.Header{"Content-Type": {"application/json"}}, Body: body}
}
