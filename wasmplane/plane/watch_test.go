package plane_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

const (
	protobufWatch = "application/vnd.kubernetes.protobuf;stream=watch"
	jsonWatch     = "application/json;stream=watch"
	metadataWatch = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1;stream=watch"
)

func newCodecs(t testing.TB) serializer.CodecFactory {
	t.Helper()
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, coordinationv1.AddToScheme, metav1.AddMetaToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return serializer.NewCodecFactory(scheme)
}

// encode writes events as the API server's watch handler does.
func encode(t testing.TB, contentType string, events ...watch.Event) []byte {
	t.Helper()
	media, _, _ := strings.Cut(contentType, ";")
	codecs := newCodecs(t)
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), media)
	if !ok {
		t.Fatalf("no serializer for %s", media)
	}
	var body bytes.Buffer
	frames := info.StreamSerializer.NewFrameWriter(&body)
	for _, ev := range events {
		var object bytes.Buffer
		gv := ev.Object.GetObjectKind().GroupVersionKind().GroupVersion()
		if err := codecs.EncoderForVersion(info.Serializer, gv).Encode(ev.Object, &object); err != nil {
			t.Fatal(err)
		}
		out := &metav1.WatchEvent{Type: string(ev.Type), Object: runtime.RawExtension{Raw: object.Bytes()}}
		encoder := codecs.EncoderForVersion(info.StreamSerializer.Serializer, schema.GroupVersion{Version: "v1"})
		if err := encoder.Encode(out, frames); err != nil {
			t.Fatal(err)
		}
	}
	return body.Bytes()
}

func pod(name string, change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "web", Name: name, UID: types.UID("uid-" + name), ResourceVersion: "41", Generation: 3,
			GenerateName: "web-", CreationTimestamp: metav1.Unix(1_790_000_000, 0),
			Labels:          map[string]string{"app": "web"},
			Annotations:     map[string]string{"note": "k8s.io/initial-events-end", "k8s.io/initial-events-end": "false"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "other-name", UID: "other-uid"}},
			ManagedFields:   []metav1.ManagedFieldsEntry{{Manager: "m", FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{}}`)}},
		},
		Spec:   corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "c", Image: "i", Args: []string{"a\nb", "\"metadata\":{}"}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	if change != nil {
		change(p)
	}
	return p
}

// watched are events of each kind, and what the plane must see in them.
func watched() (events []watch.Event, want []plane.Event) {
	add := func(typ watch.EventType, object runtime.Object, w plane.Event) {
		w.Type = string(typ)
		events, want = append(events, watch.Event{Type: typ, Object: object}), append(want, w)
	}
	now := metav1.NewTime(time.Unix(1_790_000_001, 0))
	a := plane.Event{Namespace: "web", Name: "a", UID: "uid-a", Revision: "41"}
	add(watch.Added, pod("a", nil), a)
	add(watch.Modified, pod("a", func(p *corev1.Pod) { p.ResourceVersion = "42" }), plane.Event{Namespace: "web", Name: "a", UID: "uid-a", Revision: "42"})
	deleting := a
	deleting.Deleting = true
	add(watch.Modified, pod("a", func(p *corev1.Pod) { p.DeletionTimestamp = &now }), deleting)
	add(watch.Deleted, pod("a", func(p *corev1.Pod) { p.DeletionTimestamp = &now }), deleting)
	add(watch.Added, pod("big", func(p *corev1.Pod) {
		p.Annotations["big"] = strings.Repeat("x", 1<<20)
	}), plane.Event{Namespace: "web", Name: "big", UID: "uid-big", Revision: "41"})
	add(watch.Modified, &coordinationv1.Lease{
		TypeMeta:   metav1.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: "Lease"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: "node", UID: "u", ResourceVersion: "7"},
		Spec:       coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: now.Time}},
	}, plane.Event{Namespace: "kube-node-lease", Name: "node", UID: "u", Revision: "7"})
	add(watch.Added, &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"},
		ObjectMeta: metav1.ObjectMeta{Name: "cluster-wide", UID: "v", ResourceVersion: "8"},
	}, plane.Event{Name: "cluster-wide", UID: "v", Revision: "8"})
	add(watch.Bookmark, &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: "99"},
	}, plane.Event{Revision: "99"})
	add(watch.Bookmark, &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: "100", Annotations: map[string]string{"a": "b", metav1.InitialEventsAnnotationKey: "true"}},
	}, plane.Event{Revision: "100", InitialEnd: true})
	add(watch.Error, &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Code: 410, Message: "too old resource version: 1 (2)",
		ListMeta: metav1.ListMeta{ResourceVersion: "not an object's"},
	}, plane.Event{})
	add(watch.Added, pod("owned", func(p *corev1.Pod) {
		p.OwnerReferences = append(p.OwnerReferences,
			metav1.OwnerReference{Kind: "Job", Name: "no", UID: "1", Controller: new(false)},
			metav1.OwnerReference{Kind: "StatefulSet", Name: "yes", UID: "2", Controller: new(true), BlockOwnerDeletion: new(false)},
			metav1.OwnerReference{Kind: "Node", Name: "no", UID: "3", BlockOwnerDeletion: new(true)})
	}), plane.Event{Namespace: "web", Name: "owned", UID: "uid-owned", Revision: "41", Controller: "StatefulSet"})
	return events, want
}

func TestReadEvents(t *testing.T) {
	events, want := watched()
	for _, contentType := range []string{protobufWatch, jsonWatch, metadataWatch} {
		body := encode(t, contentType, events...)
		for name, r := range map[string]io.Reader{
			"at once":          bytes.NewReader(body),
			"halves":           iotest.HalfReader(bytes.NewReader(body)),
			"data with an end": iotest.DataErrReader(bytes.NewReader(body)),
		} {
			got, raws, err := plane.ReadEvents(contentType, r)
			if !errors.Is(err, io.EOF) {
				t.Errorf("%s, %s: %v", contentType, name, err)
			}
			for k := range want {
				if k >= len(got) {
					t.Fatalf("%s, %s: %d events, want %d", contentType, name, len(got), len(want))
				}
				w := want[k]
				if got[k].Type == "ERROR" {
					w.Revision = got[k].Revision // of no use
				}
				if got[k] != w {
					t.Errorf("%s, %s: event %d is %+v, want %+v", contentType, name, k, got[k], w)
				}
			}
			if !bytes.Equal(bytes.Join(raws, nil), body) {
				t.Errorf("%s, %s: the guest would get something else than came", contentType, name)
			}
		}
	}
}

// TestReadEventsOfCutWatch cuts a watch at each byte: what comes out is the whole
// events before, and an end between two is told from one within.
func TestReadEventsOfCutWatch(t *testing.T) {
	events, want := watched()
	events, want = append(events[:4:4], events[5:]...), append(want[:4:4], want[5:]...) // without the big one
	for _, contentType := range []string{protobufWatch, jsonWatch} {
		body := encode(t, contentType, events...)
		var ends []int // of each event
		for k := range events {
			ends = append(ends, len(encode(t, contentType, events[:k+1]...)))
		}
		for cut := range len(body) {
			got, _, err := plane.ReadEvents(contentType, bytes.NewReader(body[:cut]))
			whole, between := slices.BinarySearch(ends, cut)
			if between {
				whole++
			}
			if len(got) != whole {
				t.Fatalf("%s: cut to %d bytes: %d events, want %d", contentType, cut, len(got), whole)
			}
			for k := range got {
				if got[k] != want[k] && got[k].Type != "ERROR" {
					t.Fatalf("%s: cut to %d bytes: event %d is %+v", contentType, cut, k, got[k])
				}
			}
			if clean := cut == 0 || between; clean != errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) == clean {
				t.Fatalf("%s: cut to %d bytes: %v", contentType, cut, err)
			}
		}
	}
}

func TestReadEventsRefuses(t *testing.T) {
	long := binary.BigEndian.AppendUint32(nil, abi.MaxFrame-3)
	for name, c := range map[string]struct{ contentType, body, want string }{
		"no content type":      {"", "", "content type"},
		"another content type": {"text/plain", "", "protobuf and JSON"},
		"a long frame":         {protobufWatch, string(long), "bytes"},
		"a long line":          {jsonWatch, strings.Repeat(" ", abi.MaxFrame) + "{}\n", "bytes"},
		"no JSON":              {jsonWatch, "<html>\n", "decoding"},
		"JSON of another form": {jsonWatch, `{"type":"ADDED","object":{"metadata":"x"}}` + "\n", "decoding"},
		"no protobuf":          {protobufWatch, "\x00\x00\x00\x02\xff\xff", "decoding"},
		"another wire type":    {protobufWatch, "\x00\x00\x00\x03\x0a\x05x", "decoding"},
	} {
		if _, _, err := plane.ReadEvents(c.contentType, strings.NewReader(c.body)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestBlankLinesAreNoEvents(t *testing.T) {
	got, _, err := plane.ReadEvents("application/json", strings.NewReader("\n  \r\n{\"type\":\"ADDED\"}\n\n{\"type\":\"DELETED\"}\n \n"))
	if !errors.Is(err, io.EOF) || len(got) != 2 || got[1].Type != "DELETED" {
		t.Errorf("%+v, %v", got, err)
	}
}

// FuzzDecodeProtobufEvent: where Kubernetes' decoder understands an event, this one
// sees the same type.
func FuzzDecodeProtobufEvent(f *testing.F) {
	events, _ := watched()
	for k, ev := range events {
		if k != 4 { // the big one slows down
			f.Add(encode(f, protobufWatch, ev)[4:])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := plane.DecodeProtobufEvent(b)
		var want metav1.WatchEvent
		if err == nil && want.Unmarshal(b) == nil && got.Type != want.Type {
			t.Errorf("%+v, want type %q", got, want.Type)
		}
		if err != nil && got != (plane.Event{}) {
			t.Errorf("%+v with %v", got, err)
		}
	})
}

// FuzzDecodeJSONEvent: what is decoded and encoded again is the same event.
func FuzzDecodeJSONEvent(f *testing.F) {
	events, _ := watched()
	for k, ev := range events {
		if k != 4 {
			f.Add(encode(f, jsonWatch, ev))
		}
	}
	f.Add([]byte(`{"type":"ADDED","object":{"metadata":{"deletionTimestamp":null,"annotations":null}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := plane.DecodeJSONEvent(b)
		if err != nil {
			if got != (plane.Event{}) {
				t.Errorf("%+v with %v", got, err)
			}
			return
		}
		again, err := plane.DecodeJSONEvent(bytes.TrimSpace(b))
		if err != nil || again != got {
			t.Errorf("%+v, then %+v, %v", got, again, err)
		}
	})
}

// FuzzEventReader: however a body arrives, the same events come out, and their
// bytes are the body's.
func FuzzEventReader(f *testing.F) {
	events, _ := watched()
	events = append(events[:4:4], events[5:]...)
	f.Add(true, encode(f, protobufWatch, events...))
	f.Add(false, encode(f, jsonWatch, events...))
	f.Add(true, []byte{0, 0, 0, 0, 0, 0, 0, 1, 0})
	f.Add(false, []byte("\n{}\n\n{\"type\":\"X\"}"))
	f.Fuzz(func(t *testing.T, protobuf bool, body []byte) {
		contentType := jsonWatch
		if protobuf {
			contentType = protobufWatch
		}
		events, raws, err := plane.ReadEvents(contentType, bytes.NewReader(body))
		again, rawsAgain, errAgain := plane.ReadEvents(contentType, iotest.OneByteReader(bytes.NewReader(body)))
		if !reflect.DeepEqual(events, again) || !reflect.DeepEqual(raws, rawsAgain) || err.Error() != errAgain.Error() {
			t.Errorf("%d events and %v, then %d and %v", len(events), err, len(again), errAgain)
		}
		rest := body
		for _, raw := range raws {
			if !protobuf { // blank lines are left out
				for !bytes.HasPrefix(rest, raw) && len(rest) > 0 {
					rest = rest[1:]
				}
			}
			var ok bool
			if rest, ok = bytes.CutPrefix(rest, raw); !ok {
				t.Fatalf("%q did not come", raw)
			}
		}
	})
}
