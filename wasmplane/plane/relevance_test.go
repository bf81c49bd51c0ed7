package plane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// frame is a watch event in protobuf, as the API server sends it.
func frame(typ string, object interface{ Marshal() ([]byte, error) }) []byte {
	_, kind, _ := strings.Cut(fmt.Sprintf("%T", object), ".")
	raw, err := object.Marshal()
	if err != nil {
		panic(err)
	}
	unknown := k8sruntime.Unknown{TypeMeta: k8sruntime.TypeMeta{APIVersion: "v1", Kind: kind}, Raw: raw}
	if raw, err = unknown.Marshal(); err != nil {
		panic(err)
	}
	ev := metav1.WatchEvent{Type: typ, Object: k8sruntime.RawExtension{Raw: append([]byte("k8s\x00"), raw...)}}
	if raw, err = ev.Marshal(); err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...)
}

// sleeper is a sleeping guest with watches that are open.
type sleeper struct {
	*bare
	next uint32
}

func newSleeper(t *testing.T, d controllers.Declaration) *sleeper {
	t.Helper()
	b := newBare(t, d, nil)
	b.state = Asleep
	return &sleeper{bare: b}
}

// watch opens a watch of which everything was seen.
func (s *sleeper) watch(url string) *exchange {
	s.t.Helper()
	s.next++
	x, err := s.newExchange(&abi.Request{Stream: s.next, Method: "GET", URL: url + "?watch=1&sendInitialEvents=true"})
	if err != nil {
		s.t.Fatal(err)
	}
	x.begin()
	x.settled, x.cancel = true, func() {}
	s.exchanges[x.id] = x
	return x
}

// wakes gives an event to the guest and reports whether it wakes it. If so, the guest
// takes note and sleeps again.
func (s *sleeper) wakes(x *exchange, raw []byte) bool {
	s.t.Helper()
	ev, err := decode(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.pushed.Load()
	x.take(ev, raw)
	if s.pushed.Load() == before {
		waits := slices.ContainsFunc(x.waiting, func(w waitingEvent) bool { return w.UID == ev.UID })
		if !waits && ev.kind() != controllers.Deleted { // of what came and went nothing is left
			s.t.Error("an event is lost")
		}
		return false
	}
	if len(x.waiting) > 0 {
		s.t.Error("something still waits")
	}
	s.mailbox.Reset()
	return true
}

func decode(raw []byte) (event, error) {
	if raw[0] == '{' {
		return decodeJSONEvent(raw)
	}
	return decodeProtobufEvent(raw[frameLength:])
}

// restarted is the guest after the process has: its watches are as its snapshot has
// them.
func (s *sleeper) restarted(d controllers.Declaration, change func(*snapshot.Stream)) (*sleeper, []*exchange) {
	s.t.Helper()
	var head snapshot.Head
	s.mu.Lock()
	s.fillStreams(&head)
	s.mu.Unlock()
	next := newSleeper(s.t.(*testing.T), d)
	var all []*exchange
	for _, stream := range head.Streams {
		if change != nil {
			change(&stream)
		}
		x, err := next.resumeExchange(stream)
		if err != nil {
			s.t.Fatal(err)
		}
		x.cancel = func() {}
		next.exchanges[x.id] = x
		all = append(all, x)
	}
	return next, all
}

func meta(name string, revision int, owners ...metav1.OwnerReference) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name), ResourceVersion: fmt.Sprint(revision), OwnerReferences: owners}
}

func owner(kind string) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: kind, Name: "x", UID: "uid-x", Controller: new(true)}
}

// TestOwned: whose object it is decides, whatever happens to it.
func TestOwned(t *testing.T) {
	related := owner("ReplicaSet")
	related.Controller = new(false)
	now := metav1.Now()
	for name, c := range map[string]struct {
		owners []metav1.OwnerReference
		wakes  bool
	}{
		"nobody":             {nil, true},
		"its own":            {[]metav1.OwnerReference{owner("Job")}, true},
		"its own, among":     {[]metav1.OwnerReference{related, owner("CronJob")}, true},
		"another":            {[]metav1.OwnerReference{owner("ReplicaSet")}, false},
		"another's relation": {[]metav1.OwnerReference{related}, true},
		"its own related":    {[]metav1.OwnerReference{{Kind: "Job", Controller: new(false)}, owner("ReplicaSet")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSleeper(t, controllers.Declaration{Owned: map[string][]string{"pods": {"Job", "CronJob"}}})
			pods, other := s.watch("/api/v1/pods"), s.watch("/apis/apps/v1/replicasets")
			p := &corev1.Pod{ObjectMeta: meta("a", 5, c.owners...)}
			terminating := p.DeepCopy()
			terminating.DeletionTimestamp = &now
			for _, raw := range [][]byte{
				frame("ADDED", p), frame("MODIFIED", p), frame("MODIFIED", terminating), frame("DELETED", p),
				frame("MODIFIED", &metav1.PartialObjectMetadata{ObjectMeta: p.ObjectMeta}),
			} {
				if got := s.wakes(pods, raw); got != c.wakes {
					t.Errorf("wakes %v: %q", got, raw)
				}
			}
			if !s.wakes(other, frame("ADDED", &appsv1.ReplicaSet{ObjectMeta: p.ObjectMeta})) {
				t.Error("the rule is for another resource")
			}
		})
	}
}

// TestReleasedObject: the guest hears that its object is released, and nothing more
// when another has taken it.
func TestReleasedObject(t *testing.T) {
	s := newSleeper(t, controllers.Declaration{Owned: map[string][]string{"pods": {"ReplicaSet"}}})
	x := s.watch("/api/v1/pods")
	for k, step := range []struct {
		owners []metav1.OwnerReference
		wakes  bool
	}{
		{[]metav1.OwnerReference{owner("ReplicaSet")}, true},
		{nil, true},
		{[]metav1.OwnerReference{owner("Job")}, false},
		{nil, true},
		{[]metav1.OwnerReference{owner("ReplicaSet")}, true},
	} {
		if got := s.wakes(x, frame("MODIFIED", &corev1.Pod{ObjectMeta: meta("a", 10+k, step.owners...)})); got != step.wakes {
			t.Errorf("step %d wakes: %v", k, got)
		}
	}
	if x.delivered != "14" {
		t.Errorf("delivered up to %s", x.delivered)
	}
}

// TestOwnedInJSON: metadata is the same in both encodings.
func TestOwnedInJSON(t *testing.T) {
	s := newSleeper(t, controllers.Declaration{Owned: map[string][]string{"things.example.com": {"Gadget"}}})
	x := s.watch("/apis/example.com/v1/things")
	line := func(owners string) []byte {
		return []byte(`{"type":"MODIFIED","object":{"metadata":{"name":"a","uid":"u","resourceVersion":"5","ownerReferences":` + owners + `}}}` + "\n")
	}
	for owners, want := range map[string]bool{
		`null`: true, `[]`: true,
		`[{"kind":"Gadget","controller":true}]`:                       true,
		`[{"kind":"Other","controller":true}]`:                        false,
		`[{"kind":"Other"}]`:                                          true,
		`[{"kind":"Gadget"},{"kind":"Other","controller":true}]`:      false,
		`[{"kind":"Gadget","controller":true},{"kind":"Other"}]`:      true,
		`[{"kind":"Other","controller":null,"blockOwnerDeletion":1}]`: true,
	} {
		if got := s.wakes(x, line(owners)); got != want {
			t.Errorf("%s wakes: %v", owners, got)
		}
	}
}

// TestWithout: pods matter while there is a budget for them.
func TestWithout(t *testing.T) {
	d := controllers.Declaration{Without: map[string][]string{"pods": {"poddisruptionbudgets.policy", "services"}}}
	s := newSleeper(t, d)
	revision := 10
	event := func(typ, name string) []byte {
		revision++
		return frame(typ, &corev1.Pod{ObjectMeta: meta(name, revision)})
	}
	const budgetsPath = "/apis/policy/v1/poddisruptionbudgets"
	pods, budgets := s.watch("/api/v1/pods"), s.watch(budgetsPath)
	expect := func(what string, want bool) {
		t.Helper()
		if got := s.wakes(pods, event("MODIFIED", "pod")); got != want {
			t.Errorf("%s: a pod wakes: %v", what, got)
		}
	}
	expect("services are not watched", true)
	services := s.watch("/api/v1/services")
	services.settled = false
	expect("services are being listed", true)
	services.settled = true
	expect("there are none", false)
	if !s.wakes(budgets, event("ADDED", "a")) { // with what waited
		t.Error("the first does not wake")
	}
	if pods.delivered != fmt.Sprint(revision-1) {
		t.Errorf("pods are delivered up to %s of %d", pods.delivered, revision-1)
	}
	expect("one", true)
	s.wakes(budgets, event("ADDED", "b"))
	s.wakes(budgets, event("DELETED", "a"))
	expect("one of two", true)
	s.wakes(services, event("ADDED", "c"))
	s.wakes(budgets, event("DELETED", "b"))
	expect("one of the other resource", true)
	s.wakes(services, event("DELETED", "c"))
	expect("none any more", false)

	more := s.watch(budgetsPath)
	more.members.known = false // it began with a list of the guest's own
	expect("a second watch of which nothing is known", true)
	s.Cancel(more.id)
	expect("that has ended", false)
	s.Cancel(budgets.id)
	expect("no watch", true)
}

// TestCountOverRestart: what a guest knows is known over sleep and restarts, unless
// the snapshot does not say it.
func TestCountOverRestart(t *testing.T) {
	d := controllers.Declaration{Without: map[string][]string{"pods": {"services"}}}
	s := newSleeper(t, d)
	s.watch("/api/v1/pods")
	services := s.watch("/api/v1/services")
	pod, service := frame("ADDED", &corev1.Pod{ObjectMeta: meta("a", 5)}), &corev1.Service{ObjectMeta: meta("b", 5)}
	next, xs := s.restarted(d, nil)
	if next.wakes(xs[0], pod) {
		t.Error("none: a pod wakes")
	}
	next, xs = s.restarted(d, func(s *snapshot.Stream) { s.MembersKnown = false })
	if !next.wakes(xs[0], pod) {
		t.Error("not known: a pod wakes nobody")
	}
	if _, xs := next.restarted(d, nil); xs[1].members.known {
		t.Error("what was not known is known after another restart")
	}
	s.wakes(services, frame("ADDED", service))
	next, xs = s.restarted(d, nil)
	if !next.wakes(xs[0], pod) {
		t.Error("one: a pod wakes nobody")
	}
	if !next.wakes(xs[1], frame("DELETED", service)) || next.wakes(xs[0], pod) {
		t.Error("none any more: a pod wakes")
	}
}

// TestWaitingObjectIsNotKnown: an object that the guest will only hear of does not
// count; if it goes before that, it never did.
func TestWaitingObjectIsNotKnown(t *testing.T) {
	s := newSleeper(t, controllers.Declaration{
		Without: map[string][]string{"pods": {"services"}},
		Wait:    map[string]controllers.Events{"services": controllers.Any},
	})
	pods, services := s.watch("/api/v1/pods"), s.watch("/api/v1/services")
	pod, service := frame("ADDED", &corev1.Pod{ObjectMeta: meta("a", 5)}), &corev1.Service{ObjectMeta: meta("b", 5)}
	if s.wakes(services, frame("ADDED", service)) || s.wakes(pods, pod) {
		t.Error("it is woken")
	}
	if s.wakes(services, frame("DELETED", service)) || s.wakes(pods, pod) {
		t.Error("it is woken")
	}
	s.mu.Lock()
	s.flushWaiting()
	s.mu.Unlock()
	if m := services.members; !m.none() || m.sum != 0 {
		t.Errorf("%+v", m)
	}
}

// TestTimersFor: a guest polls while there is something to look at, and not before
// or after.
func TestTimersFor(t *testing.T) {
	a := newAPI()
	dir := t.TempDir()
	d := controllers.Declaration{Name: "poller", TimersFor: []string{"objects"}}
	// Much longer than a save takes, under the race detector too: else each finds the timer due.
	often := func(_ *Config, h *Host) { h.Setup = options(`"1s"`) }
	p := start(t, dir, a, d, often)
	tick := func() int {
		n, _ := strconv.Atoi(a.got()["tick"])
		return n
	}
	sleep := func() Detail { // as if nothing had stirred it for long
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			g := p.guest()
			// The response to its last request may have stirred it before it slept: once more, without one.
			if err := g.command(t.Context(), commandWake); err != nil {
				t.Fatal(err)
			}
			g.mu.Lock()
			g.stirred = time.Now().Add(-slackAfter)
			g.mu.Unlock()
			p.evict(t)
			if head, err := p.store.Head(d.Name); err != nil {
				t.Fatal(err)
			} else if d := g.detail(); head.Quiet && d.State == Asleep {
				return d
			}
		}
		t.Fatal("not quietly asleep after 30 s")
		return Detail{}
	}
	ticks := func(after int) {
		t.Helper()
		a.await(t, fmt.Sprint("tick after ", after), func(m map[string]string) bool {
			n, _ := strconv.Atoi(m["tick"])
			return n > after
		})
	}
	ticks(0)
	rests := func() {
		t.Helper()
		before, n := sleep(), tick()
		if before.NextTimer != nil {
			t.Errorf("its timer is due at %s, though it rests", before.NextTimer)
		}
		head, err := p.store.Head(d.Name)
		if err != nil || head.NextTimer < 0 {
			t.Fatalf("it has no timer: %v", err)
		}
		// The plane hears of something when the timer is overdue.
		time.Sleep(head.NextTimer - p.clock.now() + 100*time.Millisecond)
		a.put(bookmark, "", "")
		for p.guest().detail().Streams[0].Revision != fmt.Sprint(a.version()) {
			time.Sleep(time.Millisecond)
		}
		if d := p.guest().detail(); d.Wakes != before.Wakes || tick() != n {
			t.Errorf("woken by %s, tick %d after %d", d.LastWakeReason, tick(), n)
		}
	}
	rests()
	p.stop()
	a.awaitOpen(t, 0)
	p = start(t, dir, a, d, often)
	a.awaitOpen(t, 1)
	if d := p.guest().detail(); d.State != Asleep || d.Wakes != 0 {
		t.Errorf("%s after a restart, woken by %q", d.State, d.LastWakeReason)
	}
	n := tick()
	a.put("ADDED", "x", "1")
	ticks(n)
	sleep()
	ticks(tick()) // there is something to look at
	a.put("DELETED", "x", "")
	a.await(t, "empty mirror", func(m map[string]string) bool { return m["all"] == "map[]" })
	rests()
}

// Fields of core/v1.
var (
	balanced  = controllers.Field{Name: "spec.type", Path: []int{2, 4}, Value: "LoadBalancer"}
	ephemeral = controllers.Field{Name: "spec.volumes.ephemeral", Path: []int{2, 1, 2, 29}}
	finalizer = controllers.Field{Name: "metadata.finalizers", Path: []int{1, 14}, Value: "example.com/x"}
	unbound   = controllers.Field{Name: "spec.nodeName", Path: []int{2, 10}, Absent: true}
	ttl       = controllers.Field{Name: "spec.ttlSecondsAfterFinished", Path: []int{2, 8}}
)

func having(resource string, fields ...controllers.Field) controllers.Declaration {
	return controllers.Declaration{Having: map[string][]controllers.Field{resource: fields}}
}

func service(typ corev1.ServiceType) *corev1.Service {
	return &corev1.Service{ObjectMeta: meta("a", 5), Spec: corev1.ServiceSpec{Type: typ, Ports: []corev1.ServicePort{{Name: "LoadBalancer"}}}}
}

func TestHaving(t *testing.T) {
	volumes := func(sources ...corev1.VolumeSource) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: meta("a", 5)}
		for _, s := range sources {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: s})
		}
		return p
	}
	some := corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{}}}
	empty := corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}
	dir := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	job := func(ttl *int32) *batchv1.Job {
		return &batchv1.Job{ObjectMeta: meta("a", 5), Spec: batchv1.JobSpec{TTLSecondsAfterFinished: ttl}}
	}
	finalized := func(finalizers ...string) *corev1.Service {
		s := service(corev1.ServiceTypeClusterIP)
		s.Finalizers = finalizers
		return s
	}
	broken := frame("MODIFIED", service(corev1.ServiceTypeClusterIP))
	broken[len(broken)-1] |= 0x80 // no field ends so
	for name, c := range map[string]struct {
		fields []controllers.Field
		raw    []byte
		wakes  bool
	}{
		"value":                   {[]controllers.Field{balanced}, frame("ADDED", service("LoadBalancer")), true},
		"another value":           {[]controllers.Field{balanced}, frame("ADDED", service("ClusterIP")), false},
		"longer value":            {[]controllers.Field{balanced}, frame("ADDED", service("LoadBalancers")), false},
		"deletion with it":        {[]controllers.Field{balanced}, frame("DELETED", service("LoadBalancer")), true},
		"deletion without":        {[]controllers.Field{balanced}, frame("DELETED", service("ClusterIP")), false},
		"one of two":              {[]controllers.Field{finalizer, balanced}, frame("ADDED", service("LoadBalancer")), true},
		"element":                 {[]controllers.Field{ephemeral}, frame("ADDED", volumes(dir, some, dir)), true},
		"empty element":           {[]controllers.Field{ephemeral}, frame("ADDED", volumes(dir, empty)), true},
		"no element":              {[]controllers.Field{ephemeral}, frame("ADDED", volumes(dir, dir)), false},
		"no list":                 {[]controllers.Field{ephemeral}, frame("ADDED", volumes()), false},
		"element's value":         {[]controllers.Field{finalizer}, frame("ADDED", finalized("b", "example.com/x")), true},
		"elements of other value": {[]controllers.Field{finalizer}, frame("ADDED", finalized("b", "c")), false},
		"number":                  {[]controllers.Field{ttl}, frame("ADDED", job(new(int32(0)))), true},
		"no number":               {[]controllers.Field{ttl}, frame("ADDED", job(nil)), false},
		"a number is no string":   {[]controllers.Field{{Path: ttl.Path, Value: "\x00"}}, frame("ADDED", job(new(int32(0)))), false},
		"metadata, cannot tell":   {[]controllers.Field{balanced}, frame("ADDED", &metav1.PartialObjectMetadata{ObjectMeta: meta("a", 5)}), true},
		"metadata, can tell":      {[]controllers.Field{finalizer}, frame("ADDED", &metav1.PartialObjectMetadata{ObjectMeta: meta("a", 5)}), false},
		"metadata, has it":        {[]controllers.Field{finalizer}, frame("ADDED", &metav1.PartialObjectMetadata{ObjectMeta: finalized("example.com/x").ObjectMeta}), true},
		"JSON":                    {[]controllers.Field{balanced}, []byte(object("ADDED", "a", "5", nil)), true},
		"absent":                  {[]controllers.Field{unbound}, frame("ADDED", bound("")), true},
		"absent, but is there":    {[]controllers.Field{unbound}, frame("ADDED", bound("node")), false},
		"absent, no message":      {[]controllers.Field{unbound}, frame("ADDED", job(nil)), true},
		"absent, cannot tell":     {[]controllers.Field{unbound}, frame("ADDED", &metav1.PartialObjectMetadata{ObjectMeta: meta("a", 5)}), true},
		"no path":                 {[]controllers.Field{{}}, frame("ADDED", service("ClusterIP")), true},
		"no fields":               {nil, frame("ADDED", service("ClusterIP")), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSleeper(t, having("things", c.fields...))
			if got := s.wakes(s.watch("/api/v1/things"), c.raw); got != c.wakes {
				t.Errorf("wakes: %v", got)
			}
			if !s.wakes(s.watch("/api/v1/others"), c.raw) {
				t.Error("the rule is for another resource")
			}
		})
	}
	s := newSleeper(t, having("things", balanced))
	x := s.watch("/api/v1/things")
	if s.mu.Lock(); x.lacksFields(event{Type: "MODIFIED", UID: "u"}, broken) {
		t.Error("what cannot be read wakes nobody")
	}
	s.mu.Unlock()
}

// TestUrgent: an object with the field wakes the guest although its kind may wait, if
// nothing else lets it wait.
func TestUrgent(t *testing.T) {
	d := controllers.Declaration{
		Wait:   map[string]controllers.Events{"*": controllers.Any &^ controllers.Deleted},
		Urgent: map[string][]controllers.Field{"things": {balanced}},
	}
	s := newSleeper(t, d)
	things, others := s.watch("/api/v1/things"), s.watch("/api/v1/others")
	for _, c := range []struct {
		x     *exchange
		raw   []byte
		wakes bool
	}{
		{things, frame("MODIFIED", service("ClusterIP")), false},
		{things, frame("MODIFIED", service("LoadBalancer")), true},
		{things, frame("DELETED", service("ClusterIP")), true},
		{others, frame("MODIFIED", service("LoadBalancer")), false},
	} {
		if got := s.wakes(c.x, c.raw); got != c.wakes {
			t.Errorf("%s of %s wakes: %v", c.raw, c.x.resource, got)
		}
	}
	d.Owned = map[string][]string{"things": {"Other"}}
	s = newSleeper(t, d)
	owned := service("LoadBalancer")
	owned.OwnerReferences = []metav1.OwnerReference{{Kind: "Thing", Name: "t", UID: "t", Controller: new(true)}}
	if s.wakes(s.watch("/api/v1/things"), frame("MODIFIED", owned)) {
		t.Error("an object of another owner wakes the guest")
	}
}

// TestChanging: an event that may wait by its kind does not if a declared field is
// another than before, whether the guest was told of that or is about to be.
func TestChanging(t *testing.T) {
	owners := []controllers.Field{{Name: "metadata.ownerReferences", Path: []int{objectMetadata, metaOwners}}}
	const may = controllers.Added | controllers.Modified | controllers.Deleted
	s := newSleeper(t, controllers.Declaration{
		Wait:     map[string]controllers.Events{"*": may, "others": may},
		Changing: map[string][]controllers.Field{"*": owners, "others": nil},
	})
	revision := 10
	event := func(typ, name string, owners ...metav1.OwnerReference) []byte {
		revision++
		return frame(typ, &metav1.PartialObjectMetadata{ObjectMeta: meta(name, revision, owners...)})
	}
	things, others := s.watch("/api/v1/things"), s.watch("/api/v1/others")
	two := []metav1.OwnerReference{owner("ReplicaSet"), {Kind: "Node", Name: "n", UID: "n"}}
	for k, step := range []struct {
		x     *exchange
		raw   []byte
		wakes bool
	}{
		{things, event("ADDED", "a"), true}, // not known
		{things, event("MODIFIED", "a"), false},
		{things, event("MODIFIED", "a", owner("ReplicaSet")), true},
		{things, event("MODIFIED", "a", owner("ReplicaSet")), false},
		{things, event("MODIFIED", "b", owner("ReplicaSet")), true},
		{things, event("MODIFIED", "a", two...), true},
		{things, event("MODIFIED", "a", two[1], two[0]), true},
		{things, event("MODIFIED", "a"), true}, // it is released
		{things, event("MODIFIED", "a"), false},
		{things, event("DELETED", "a"), false},
		{things, event("MODIFIED", "a"), true}, // not known any more
		{things, []byte(object("MODIFIED", "a", "99", nil)), true},
		{things, event("MODIFIED", "a"), true}, // JSON says nothing
		{others, event("ADDED", "a"), false},
		{others, event("MODIFIED", "a", owner("ReplicaSet")), false},
	} {
		if got := s.wakes(step.x, step.raw); got != step.wakes {
			t.Errorf("step %d wakes: %v", k, got)
		}
	}
	if len(others.digests) != 0 || len(things.digests) != 2 {
		t.Errorf("kept: %v, %v", things.digests, others.digests)
	}

	fields := newSleeper(t, controllers.Declaration{
		Wait:     map[string]controllers.Events{"services": controllers.Any},
		Changing: map[string][]controllers.Field{"services": {balanced}},
	})
	x := fields.watch("/api/v1/services")
	for k, wakes := range []bool{true, true} { // metadata alone cannot tell
		if got := fields.wakes(x, event("MODIFIED", "a")); got != wakes {
			t.Errorf("event %d of metadata wakes: %v", k, got)
		}
	}
}

// TestChangeThatIsLate: a change that wakes the guest a moment later does so although
// another event of the object has come meanwhile.
func TestChangeThatIsLate(t *testing.T) {
	s := newSleeper(t, controllers.Declaration{
		Wait:     map[string]controllers.Events{"things": controllers.Modified},
		Late:     map[string]controllers.Events{"things": controllers.Added | controllers.Modified},
		Changing: map[string][]controllers.Field{"things": {{Name: "metadata.ownerReferences", Path: []int{objectMetadata, metaOwners}}}},
	})
	x := s.watch("/api/v1/things")
	for k, owners := range [][]metav1.OwnerReference{nil, {owner("ReplicaSet")}, {owner("ReplicaSet")}} {
		typ := "MODIFIED"
		if k == 0 {
			typ = "ADDED"
		}
		if s.wakes(x, frame(typ, &metav1.PartialObjectMetadata{ObjectMeta: meta("a", 10+k, owners...)})) {
			t.Errorf("event %d wakes at once", k)
		}
		if due := s.waitingDue(time.Now()); due > lateness {
			t.Errorf("after event %d it wakes in %s", k, due)
		}
	}
}

// TestCounting: of a resource that others are without, only objects with a field count.
func TestCounting(t *testing.T) {
	d := controllers.Declaration{
		Without:   map[string][]string{"pods": {"services"}},
		TimersFor: []string{"services"},
		Counting:  map[string][]controllers.Field{"services": {balanced}},
	}
	s := newSleeper(t, d)
	pods, services := s.watch("/api/v1/pods"), s.watch("/api/v1/services")
	pod := frame("MODIFIED", &corev1.Pod{ObjectMeta: meta("p", 5)})
	check := func(what string, known bool) {
		t.Helper()
		if got := s.wakes(pods, pod); got != known {
			t.Errorf("%s: a pod wakes: %v", what, got)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if got := s.timersRest(); got == known {
			t.Errorf("%s: timers rest: %v", what, got)
		}
	}
	check("none", false)
	if !s.wakes(services, frame("ADDED", service("ClusterIP"))) {
		t.Error("the resource itself waits")
	}
	check("one that does not count", false)
	s.wakes(services, frame("MODIFIED", service("LoadBalancer")))
	check("one that counts", true)
	s, xs := s.restarted(d, nil)
	pods, services = xs[0], xs[1]
	check("after a restart", true)
	s.wakes(services, frame("MODIFIED", service("ClusterIP")))
	check("none that counts any more", false)
	services.having = nil
	check("not known", true)
}

// TestFieldThatGoes: what the guest was told decides, not what the API server has
// sent, and not what the guest was told before.
func TestFieldThatGoes(t *testing.T) {
	d := having("services", balanced)
	d.Wait = map[string]controllers.Events{"services": controllers.Terminating} // no matter with which fields
	s := newSleeper(t, d)
	x := s.watch("/api/v1/services")
	now := metav1.Now()
	terminating := func(typ corev1.ServiceType) []byte {
		o := service(typ)
		o.DeletionTimestamp = &now
		return frame("MODIFIED", o)
	}
	with, without := frame("MODIFIED", service("LoadBalancer")), frame("MODIFIED", service("ClusterIP"))
	gone := frame("DELETED", service("ClusterIP"))
	for k, step := range []struct {
		raw   []byte
		wakes bool
	}{
		{with, true},
		{without, true}, // it goes
		{without, false},
		{terminating("LoadBalancer"), false},
		{without, false}, // the guest has never heard of it
		{with, true},
		{terminating("ClusterIP"), false},
		{without, true}, // it has not heard yet that it goes
		{without, false},
		{with, true},
		{gone, true},
		{gone, false},
	} {
		if got := s.wakes(x, step.raw); got != step.wakes {
			t.Errorf("step %d wakes: %v", k, got)
		}
	}
	if len(x.having) != 0 {
		t.Errorf("%v are kept", x.having)
	}
}

func bound(node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta("a", 5), Spec: corev1.PodSpec{NodeName: node}}
}

// TestPurpose: while there is a pod without a node everything wakes the guest, and
// its timers run; otherwise only such a pod does.
func TestPurpose(t *testing.T) {
	s := newSleeper(t, controllers.Declaration{Purpose: map[string][]controllers.Field{"pods": {unbound}}})
	nodes := s.watch("/api/v1/nodes")
	if !s.wakes(nodes, frame("ADDED", &corev1.Node{ObjectMeta: meta("n", 5)})) {
		t.Error("nobody knows whether there is a pod, as they are not watched")
	}
	pods := s.watch("/api/v1/pods")
	other := bound("node")
	other.UID = "other"
	for k, step := range []struct {
		x     *exchange
		raw   []byte
		wakes bool
		rest  bool // afterwards
	}{
		{nodes, frame("MODIFIED", &corev1.Node{ObjectMeta: meta("n", 5)}), false, true},
		{pods, frame("ADDED", bound("node")), false, true},
		{pods, frame("DELETED", bound("node")), false, true},
		{pods, frame("ADDED", bound("")), true, false},
		{nodes, frame("MODIFIED", &corev1.Node{ObjectMeta: meta("n", 5)}), true, false},
		{pods, frame("ADDED", other), true, false},
		{pods, frame("MODIFIED", bound("node")), true, true},
		{pods, frame("MODIFIED", bound("node")), false, true},
		{nodes, frame("DELETED", &corev1.Node{ObjectMeta: meta("n", 5)}), false, true},
	} {
		if got := s.wakes(step.x, step.raw); got != step.wakes {
			t.Errorf("step %d wakes: %v", k, got)
		}
		s.mu.Lock()
		if got := s.timersRest(); got != step.rest {
			t.Errorf("after step %d the timers rest: %v", k, got)
		}
		s.mu.Unlock()
	}
	unknown := s.watch("/api/v1/pods")
	unknown.having = nil
	if !s.wakes(nodes, frame("MODIFIED", &corev1.Node{ObjectMeta: meta("n", 5)})) {
		t.Error("nobody knows whether there is a pod")
	}
}

// TestFieldsOverRestart: a field that goes is noticed after a restart as before, and
// if nothing is known of what the guest was told, everything wakes it.
func TestFieldsOverRestart(t *testing.T) {
	d := having("services", balanced)
	with, without := frame("MODIFIED", service("LoadBalancer")), frame("MODIFIED", service("ClusterIP"))
	for name, c := range map[string]struct {
		told  []byte
		saved func(*snapshot.Stream)
		wakes bool
	}{
		"none":                      {without, nil, false},
		"one":                       {with, nil, true},
		"not known":                 {without, func(s *snapshot.Stream) { s.Having = nil }, true},
		"twice":                     {with, func(*snapshot.Stream) {}, true},
		"not known, from a version": {without, func(s *snapshot.Stream) { s.MembersKnown, s.Members, s.Count = false, 0, 0 }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSleeper(t, d)
			x := s.watch("/api/v1/services")
			s.wakes(x, c.told)
			s.mu.Lock()
			s.flushWaiting()
			s.mu.Unlock()
			next, xs := s.restarted(d, c.saved)
			if name == "twice" {
				next, xs = next.restarted(d, nil)
			}
			if got := next.wakes(xs[0], without); got != c.wakes {
				t.Errorf("wakes: %v", got)
			}
		})
	}

	s := newSleeper(t, d)
	x := s.watch("/api/v1/services")
	x.url.RawQuery = "watch=1&resourceVersion=4"
	x.having = nil
	x.begin()
	for range 2 {
		if !s.wakes(x, without) {
			t.Error("what was there before the watch is not known, and an event wakes nobody")
		}
	}
}

// TestDeclarationOfSnapshots: heads that were written with other fields in mind are
// not used, and those of guests without such rules are as they were.
func TestDeclarationOfSnapshots(t *testing.T) {
	sums := map[string]bool{}
	for _, d := range []controllers.Declaration{
		{}, having("services", balanced), having("services", finalizer), having("pods", balanced), having("services", balanced, finalizer),
	} {
		sums[newBare(t, d, nil).startSum] = true
	}
	if len(sums) != 5 {
		t.Errorf("%d digests", len(sums))
	}
	b := newBare(t, controllers.Declaration{Owned: map[string][]string{"pods": nil}, Without: map[string][]string{"a": {"b"}}}, nil)
	if !sums[b.startSum] {
		t.Error("a digest depends on what is not kept")
	}
}

// FuzzHasField compares with a plain search of all values at a path.
func FuzzHasField(f *testing.F) {
	for _, typ := range []corev1.ServiceType{"LoadBalancer", "ClusterIP", ""} {
		b, _ := service(typ).Marshal()
		f.Add(b, uint8(2), uint8(4), "LoadBalancer")
		f.Add(b, uint8(1), uint8(1), "")
	}
	f.Add([]byte{0x0b, 0x08, 0x01, 0x0c, 0x0a, 0x00}, uint8(1), uint8(1), "")
	f.Fuzz(func(t *testing.T, b []byte, first, second uint8, value string) {
		var all []string
		var err error
		search := func(b []byte, number int, found func(protowire.Type, []byte)) {
			for len(b) > 0 {
				n, typ, size := protowire.ConsumeField(b)
				if size < 0 {
					err = protowire.ParseError(size)
					return
				}
				if int(n) == number {
					_, _, tag := protowire.ConsumeTag(b)
					found(typ, b[tag:size])
				}
				b = b[size:]
			}
		}
		search(b, int(first), func(typ protowire.Type, v []byte) {
			if inner, n := protowire.ConsumeBytes(v); typ == protowire.BytesType && n >= 0 {
				search(inner, int(second), func(typ protowire.Type, v []byte) {
					s := "a number"
					if text, n := protowire.ConsumeBytes(v); typ == protowire.BytesType && n >= 0 {
						s = "text " + string(text)
					}
					all = append(all, s)
				})
			}
		})
		path := []int{int(first), int(second)}
		has, gotErr := hasField(b, path, counts(controllers.Field{Value: value}))
		if err == nil && gotErr != nil {
			t.Fatal(gotErr)
		}
		want := len(all) > 0
		if value != "" {
			want = slices.Contains(all, "text "+value)
		}
		if err == nil && has != want {
			t.Errorf("%v %q: %v in %q", path, value, has, all)
		}
		if err != nil && gotErr == nil && !has {
			t.Errorf("%v %q: not there in what cannot be read (%v)", path, value, err)
		}
	})
}

// FuzzObjectOf: what is given out as an object lies within the event, and is what
// its metadata was read from.
func FuzzObjectOf(f *testing.F) {
	f.Add(frame("ADDED", service("LoadBalancer")))
	f.Add(frame("MODIFIED", &metav1.PartialObjectMetadata{ObjectMeta: meta("a", 5, owner("Job"))}))
	f.Add([]byte(object("ADDED", "a", "5", nil)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		kind, object, ok := objectOf(raw)
		if !ok {
			return
		}
		if !bytes.Contains(raw, object) || !bytes.Contains(raw, []byte(kind)) || raw[0] >= 9 {
			t.Errorf("%q has %q of %q", raw, object, kind)
		}
		ev, err := decodeProtobufEvent(raw[frameLength:])
		if err != nil || ev.Type == errorEvent {
			return
		}
		meta, err := field(object, objectMetadata)
		if err != nil {
			t.Fatal(err)
		}
		if uid, err := field(meta, metaUID); err != nil || string(uid) != ev.UID {
			t.Errorf("UID %q, in the event %q: %v", uid, ev.UID, err)
		}
	})
}

// TestFingerprint: heartbeats leave a fingerprint as it is, anything else does not.
func TestFingerprint(t *testing.T) {
	at := func(second int64) metav1.Time { return metav1.Unix(1_790_000_000+second, 0) }
	node := func(change func(*corev1.Node)) []byte {
		n := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", ResourceVersion: "5", Labels: map[string]string{"a": "b"},
				ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}},
			Spec: corev1.NodeSpec{PodCIDR: "10.0.0.0/24"},
			Status: corev1.NodeStatus{
				Capacity: corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("1Gi")},
				Conditions: []corev1.NodeCondition{
					{Type: "MemoryPressure", Status: "False", LastHeartbeatTime: at(0), LastTransitionTime: at(0)},
					{Type: "Ready", Status: "True", LastHeartbeatTime: at(0), LastTransitionTime: at(0)},
				},
				Images: []corev1.ContainerImage{{Names: []string{"image"}, SizeBytes: 5}},
			},
		}
		change(n)
		return frame("MODIFIED", n)
	}
	metadata := func(change func(*metav1.ObjectMeta)) []byte {
		m := metav1.ObjectMeta{Name: "n", UID: "u", ResourceVersion: "5", Generation: 1}
		change(&m)
		return frame("MODIFIED", &metav1.PartialObjectMetadata{ObjectMeta: m})
	}
	lease := func(change func(*coordinationv1.Lease)) []byte {
		l := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "u", ResourceVersion: "5"},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: new("me"), LeaseDurationSeconds: new(int32(40)),
				AcquireTime: &metav1.MicroTime{Time: at(0).Time}, RenewTime: &metav1.MicroTime{Time: at(0).Time}},
		}
		change(l)
		return frame("MODIFIED", l)
	}
	for name, c := range map[string]struct {
		resource string
		object   func(changed bool) []byte
		refresh  bool
	}{
		"node, nothing": {"nodes", func(bool) []byte { return node(func(*corev1.Node) {}) }, true},
		"node, heartbeat": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.ResourceVersion, n.ManagedFields = "600000", append(n.ManagedFields, metav1.ManagedFieldsEntry{Manager: "other"})
					n.Status.Conditions[0].LastHeartbeatTime, n.Status.Conditions[1].LastHeartbeatTime = at(300), at(1<<33)
				}
			})
		}, true},
		"node, managed by nobody": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.ManagedFields = nil
				}
			})
		}, true},
		"node, transition": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.Status.Conditions[1].LastTransitionTime = at(1)
				}
			})
		}, false},
		"node, not ready": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.Status.Conditions[1].Status = "Unknown"
				}
			})
		}, false},
		"node, one condition more": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{})
				}
			})
		}, false},
		"node, conditions exchanged": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					slices.Reverse(n.Status.Conditions)
				}
			})
		}, false},
		"node, taint": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: "NoExecute"}}
				}
			})
		}, false},
		"node, label": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.Labels["a"] = "c"
				}
			})
		}, false},
		"node, capacity": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if c {
					n.Status.Capacity["cpu"] = resource.MustParse("3")
				}
			})
		}, false},
		"node, deletion": {"nodes", func(c bool) []byte {
			return node(func(n *corev1.Node) {
				if now := at(9); c {
					n.DeletionTimestamp = &now
				}
			})
		}, false},
		"lease, renewal": {"leases.coordination.k8s.io", func(c bool) []byte {
			return lease(func(l *coordinationv1.Lease) {
				if c {
					l.ResourceVersion, l.Spec.RenewTime = "99", &metav1.MicroTime{Time: at(10).Add(time.Microsecond)}
				}
			})
		}, true},
		"lease, first renewal": {"leases.coordination.k8s.io", func(c bool) []byte {
			return lease(func(l *coordinationv1.Lease) {
				if !c {
					l.Spec.RenewTime = nil
				}
			})
		}, true},
		"lease, holder": {"leases.coordination.k8s.io", func(c bool) []byte {
			return lease(func(l *coordinationv1.Lease) {
				if c {
					l.Spec.HolderIdentity = new("you")
				}
			})
		}, false},
		"lease, acquired again": {"leases.coordination.k8s.io", func(c bool) []byte {
			return lease(func(l *coordinationv1.Lease) {
				if c {
					l.Spec.AcquireTime = &metav1.MicroTime{Time: at(10).Time}
				}
			})
		}, false},
		"lease, duration": {"leases.coordination.k8s.io", func(c bool) []byte {
			return lease(func(l *coordinationv1.Lease) {
				if c {
					l.Spec.LeaseDurationSeconds = new(int32(41))
				}
			})
		}, false},
		"metadata, version": {"nodes", func(c bool) []byte {
			return metadata(func(m *metav1.ObjectMeta) {
				if c {
					m.ResourceVersion = "6"
				}
			})
		}, true},
		"metadata, generation": {"leases.coordination.k8s.io", func(c bool) []byte {
			return metadata(func(m *metav1.ObjectMeta) {
				if c {
					m.Generation = 2
				}
			})
		}, false},
	} {
		p := newPrints(c.resource, nil)
		for k, step := range []struct {
			raw  []byte
			want bool
		}{{c.object(false), false}, {c.object(true), c.refresh}, {c.object(false), c.refresh}, {c.object(false), true}} {
			ev, err := decode(step.raw)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.note(ev, step.raw); got != step.want {
				t.Errorf("%s: step %d is a refresh: %v", name, k, got)
			}
		}
	}
}

// TestFingerprintOfMovedField: the same field in a condition and beside it.
func TestFingerprintOfMovedField(t *testing.T) {
	within, err := fingerprint([]byte("\x1a\x05\x22\x03\x0a\x01a"), heartbeats["nodes"])
	if err != nil {
		t.Fatal(err)
	}
	if beside, err := fingerprint([]byte("\x1a\x05\x22\x00\x0a\x01a"), heartbeats["nodes"]); err != nil || within == beside {
		t.Errorf("%x and %x: %v", within, beside, err)
	}
}

// TestPrints: which events are refreshes, besides what they change.
func TestPrints(t *testing.T) {
	if newPrints("pods", nil) != nil || newPrints("leases.example.com", nil) != nil {
		t.Error("prints of objects without heartbeats")
	}
	const leases = "leases.coordination.k8s.io"
	with := func(typ, uid, holder string) []byte {
		return frame(typ, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: types.UID(uid), ResourceVersion: "5"},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}})
	}
	broken := with("MODIFIED", "a", "x")
	copy(broken[bytes.LastIndex(broken, []byte("\x0a\x01x")):], "\x0a\x02x") // longer than it is
	line := []byte(object("MODIFIED", "a", "5", nil))
	p := newPrints(leases, nil)
	for k, step := range []struct {
		raw  []byte
		want bool
	}{
		{with("ADDED", "a", "x"), false},
		{with("MODIFIED", "a", "x"), true},
		{with("MODIFIED", "b", "x"), false}, // another object
		{with("MODIFIED", "a", "y"), false},
		{with("MODIFIED", "a", "x"), false}, // back again
		{with("ADDED", "a", "x"), false},    // it comes anew
		{with("MODIFIED", "a", "x"), true},
		{with("DELETED", "a", "x"), false},
		{with("MODIFIED", "a", "x"), false},
		{with("MODIFIED", "a", "x"), true},
		{with("BOOKMARK", "a", "x"), false},
		{with("MODIFIED", "a", "x"), true},
		{with("MODIFIED", "", "x"), false},
		{with("MODIFIED", "", "x"), false},
		{broken, false},
		{broken, false},
		{with("MODIFIED", "a", "x"), false},
		{line, false},
		{line, false},
	} {
		ev, err := decode(step.raw)
		if err != nil {
			ev = event{Type: "MODIFIED", UID: "a", Revision: "5"}
		}
		if got := p.note(ev, step.raw); got != step.want {
			t.Errorf("step %d is a refresh: %v", k, got)
		}
	}
	if got := (*prints)(nil).note(event{Type: "MODIFIED", UID: "a"}, with("MODIFIED", "a", "x")); got {
		t.Error("a refresh of what has no heartbeats")
	}
}

// TestModelOfPrints has feeds follow each other, each one a watch that began somewhere
// and was read for a while before. What is called a refresh must be one of the state
// before it in all of history: a follower has seen that, whoever gave it to him.
func TestModelOfPrints(t *testing.T) {
	const leases = "leases.coordination.k8s.io"
	refreshes := 0
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 9))
		type version struct {
			event
			raw    []byte
			same   bool // as the version before
			holder string
		}
		var history []version // version k+1
		latest := map[string]version{}
		happen := func() {
			uid, typ := fmt.Sprint("u", random.IntN(3)), "MODIFIED"
			before, there := latest[uid]
			holder := before.holder
			switch {
			case !there:
				typ, holder = "ADDED", fmt.Sprint(random.IntN(2))
			case random.IntN(3) == 0:
				holder = fmt.Sprint(random.IntN(2)) // it may go back and forth
			case random.IntN(20) == 0:
				typ = "DELETED"
			}
			revision := fmt.Sprint(len(history) + 1)
			raw := frame(typ, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid), ResourceVersion: revision},
				Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &metav1.MicroTime{Time: time.Unix(int64(len(history)), 0)}}})
			ev, err := decode(raw)
			if err != nil {
				t.Fatal(err)
			}
			v := version{ev, raw, there && typ == "MODIFIED" && holder == before.holder, holder}
			latest[uid] = v
			if typ == "DELETED" {
				delete(latest, uid)
			}
			history = append(history, v)
		}
		for range 10 {
			happen()
		}
		var past *prints
		for range 10 {
			var p *prints
			at := 0
			switch random.IntN(4) {
			case 0: // it begins with a list
				at = len(history)
				p = newPrints(leases, url.Values{"sendInitialEvents": {"true"}})
				for _, v := range latest {
					v.Type = "ADDED"
					p.note(v.event, v.raw)
				}
				p.note(event{Type: bookmark, Revision: fmt.Sprint(at), InitialEnd: true}, nil)
			case 1: // from any version
				at = 1 + random.IntN(len(history))
				p = newPrints(leases, url.Values{"resourceVersion": {fmt.Sprint(at)}})
			default: // from where the last feed ended
				if at = 1; past != nil {
					at = int(past.upTo)
				}
				p = newPrints(leases, url.Values{"resourceVersion": {fmt.Sprint(at)}})
			}
			read := func(most int, feed bool) {
				for ; most > 0; most-- {
					if at == len(history) {
						happen()
					}
					v := history[at]
					at++
					if refresh := p.note(v.event, v.raw); refresh && feed {
						refreshes++
						if !v.same {
							t.Fatalf("seed %d: version %d is called a refresh", seed, at)
						}
					}
					if random.IntN(10) == 0 {
						p.note(event{Type: bookmark, Revision: fmt.Sprint(at)}, nil)
					}
				}
			}
			read(random.IntN(8), false)
			p.inherit(past)
			past = nil
			read(random.IntN(12), true)
			if p.newerThan(past) {
				past = p
			}
			for range random.IntN(4) {
				happen()
			}
		}
	}
	if t.Logf("%d refreshes", refreshes); refreshes < 500 {
		t.Error("hardly any refresh was recognised")
	}
}

// TestHeartbeatsWakeNobody: guests that follow a feed sleep through renewals, from the
// first on and after the feed was renewed, and hear of everything else.
func TestHeartbeatsWakeNobody(t *testing.T) {
	bares, apis := bareUsers(t, 3)
	w := apis[0].world
	w.encode = func(typ string, meta metav1.ObjectMeta, value string) []byte {
		return frame(typ, &coordinationv1.Lease{ObjectMeta: meta, Spec: coordinationv1.LeaseSpec{HolderIdentity: new(value[:min(1, len(value))]),
			RenewTime: &metav1.MicroTime{Time: time.Unix(int64(len(w.events)), 0)}}})
	}
	for _, b := range bares {
		b.Heartbeat = controllers.Heartbeat{Resource: "leases.coordination.k8s.io", Within: time.Hour}
	}
	w.put("ADDED", "node", "a")
	for _, b := range bares {
		b.must(1, "/apis/coordination.k8s.io/v1/leases?watch=1&sendInitialEvents=true")
	}
	for _, b := range bares {
		b.until("the watch", func() bool { return b.underWay == 0 })
		b.mu.Lock()
		b.mailbox.Reset()
		b.state = Asleep
		b.mu.Unlock()
	}
	w.awaitOpen(t, 1)
	happens := func(what, typ, value string, wakes bool) {
		t.Helper()
		for _, b := range bares {
			b.pushed.Store(0)
			b.mu.Lock()
			clear(b.heartbeats)
			b.mu.Unlock()
		}
		w.put(typ, "node", value)
		for k, b := range bares {
			b.seen(w.version())
			b.mu.Lock()
			if woken := b.pushed.Load() > 0; woken != wakes {
				t.Errorf("%s: guest %d is woken: %v", what, k, woken)
			}
			if want := typ != "DELETED"; (len(b.heartbeats) == 1) != want {
				t.Errorf("%s: guest %d has noted %d heartbeats", what, k, len(b.heartbeats))
			}
			b.mailbox.Reset()
			b.mu.Unlock()
		}
	}
	happens("first renewal", "MODIFIED", "a2", false)
	happens("second renewal", "MODIFIED", "a3", false)
	happens("another holder", "MODIFIED", "b", true)
	happens("its renewal", "MODIFIED", "b2", false)
	w.put(bookmark, "", "")
	for _, b := range bares {
		b.seen(w.version())
	}
	w.mu.Lock()
	watches := w.watches
	w.mu.Unlock()
	w.endWatches()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		renewed := w.watches == watches+len(bares)
		w.mu.Unlock()
		if renewed {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the watches are not renewed")
		}
	}
	w.awaitOpen(t, 1)
	happens("renewal after the feed's", "MODIFIED", "b3", false)
	happens("change after the feed's renewal", "MODIFIED", "a", true)
	happens("deletion", "DELETED", "a", true)
	happens("anew", "ADDED", "a", true)
	happens("renewal of the new one", "MODIFIED", "a2", false)
}

// FuzzFingerprint: whatever the rest of an object, its version does not matter and a
// label does. Another place for the same bytes does.
func FuzzFingerprint(f *testing.F) {
	n := &corev1.Node{ObjectMeta: meta("a", 5), Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: "Ready"}}}}
	m, _ := n.ObjectMeta.Marshal()
	status, _ := n.Status.Marshal()
	f.Add(m, protowire.AppendBytes(protowire.AppendTag(nil, nodeStatus, protowire.BytesType), status), "6")
	f.Add([]byte{}, []byte{0x1a, 0x02, 0x22, 0x00, 0x22, 0x00}, "")
	f.Fuzz(func(t *testing.T, metadata, rest []byte, revision string) {
		if len(rest) > 0 && rest[0] == 0x0a { // metadata again
			return
		}
		sum := func(more ...string) uint64 {
			m := bytes.Clone(metadata)
			for k := 0; k < len(more); k += 2 {
				m = append(m, more[k]...)
				m = protowire.AppendString(m, more[k+1])
			}
			object := protowire.AppendBytes(protowire.AppendTag(nil, objectMetadata, protowire.BytesType), m)
			s, err := fingerprint(append(object, rest...), heartbeats["nodes"])
			if err != nil {
				return 0
			}
			return s
		}
		version, managed, label := "\x32", "\x8a\x01", "\x5a" // tags
		plain := sum()
		if plain == 0 {
			return
		}
		if sum(version, revision) != plain || sum(managed, revision, version, "7") != plain {
			t.Error("the version counts")
		}
		if sum(label, revision) == plain {
			t.Error("a label does not count")
		}
		for _, tail := range []string{"\x1a\x04\x22\x02\x1a\x00", "\x1a\x02\x22\x00", "\x1a\x00", "\x22\x00"} {
			if s, err := fingerprint(append(bytes.Clone(rest), tail...), heartbeats["nodes"]); err == nil {
				if before, err := fingerprint(rest, heartbeats["nodes"]); err != nil || s == before {
					t.Errorf("%q at the end does not count", tail)
				}
			}
		}
	})
}
