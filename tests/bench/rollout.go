package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	namespace = "bench"
	replicas  = 3
	// label is on what a Deployment makes; its value tells whose it is.
	label = "bench"

	// rolloutPatience is how long a Deployment may take to have its pods, or to be gone with them. Longer means that
	// something is broken.
	rolloutPatience = 5 * time.Minute
	// quiet is how long nothing may happen before a measurement.
	quiet = 300 * time.Millisecond
	// unloaded is how long all controllers have slept when the module has left memory, too, and then some.
	unloaded = 40 * time.Second
	// unloadedSamples is how many samples of others there is one of these for.
	unloadedSamples = 10
)

// Rollout is how long it takes from sending a Deployment until its objects exist, as one client sees them over
// watches that it opened before. In milliseconds, one for each sample.
type Rollout struct {
	Mode       string    `json:"mode"`
	Guests     string    `json:"guests"`     // asleep, warm or unloaded; "" if there are none
	Created    []float64 `json:"created"`    // the server has answered
	ReplicaSet []float64 `json:"replicaSet"` // it exists
	FirstPod   []float64 `json:"firstPod"`   // it exists
	Pods       []float64 `json:"pods"`       // all of them exist
	Bound      []float64 `json:"bound"`      // all of them are bound to the node
	Load       float64   `json:"load"`       // load average at the end
}

// Burst is what happens when many Deployments are created at once.
type Burst struct {
	Mode          string  `json:"mode"`
	Deployments   int     `json:"deployments"`
	Created       float64 `json:"created"`       // seconds until all have been accepted
	ReplicaSets   float64 `json:"replicaSets"`   // seconds until all exist
	Pods          float64 `json:"pods"`          // seconds until all exist
	Bound         float64 `json:"bound"`         // seconds until all are bound to the node
	Gone          float64 `json:"gone"`          // seconds from deleting the Deployments until no pod is left
	Before        int64   `json:"before"`        // anonymous memory, in bytes
	PeakAnonymous int64   `json:"peakAnonymous"` // bytes, looked at every 100 ms
	CPU           float64 `json:"cpu"`           // seconds, until all pods are bound
	// Guests is how much of it each guest took, in seconds.
	Guests map[string]float64 `json:"guests,omitempty"`
	Load   float64            `json:"load"`
}

// prepare gives the server a node, and a namespace for all objects with the account that pods need.
func (s *server) prepare(ctx context.Context) error {
	if err := s.makeNamespace(ctx); err != nil {
		return err
	}
	return s.startNode(ctx)
}

func (s *server) makeNamespace(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rolloutPatience)
	defer cancel()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if _, err := s.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating a namespace on %s: %w", s.name, err)
	}
	accounts := s.client.CoreV1().ServiceAccounts(namespace)
	if !s.controllers {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
		if _, err := accounts.Create(ctx, account, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating a service account on %s: %w", s.name, err)
		}
		return nil
	}
	f, err := follow(ctx, "", accounts.Watch)
	if err != nil {
		return fmt.Errorf("watching service accounts of %s: %w", s.name, err)
	}
	defer f.stop()
	if _, err := f.await(ctx, 1, nil); err != nil {
		return fmt.Errorf("waiting for the service account of a namespace on %s: %w", s.name, err)
	}
	return nil
}

// follower is a watch that goes on. The API server ends watches, those of busy clients above all; all that there is then
// comes anew.
type follower struct {
	open func(context.Context, metav1.ListOptions) (watch.Interface, error)
	list metav1.ListOptions
	now  watch.Interface
}

// follow begins to watch what has the label value.
func follow(ctx context.Context, value string, open func(context.Context, metav1.ListOptions) (watch.Interface, error)) (*follower, error) {
	f := &follower{open: open, list: metav1.ListOptions{ResourceVersion: "0"}}
	if value != "" {
		f.list.LabelSelector = label + "=" + value
	}
	var err error
	f.now, err = f.open(ctx, f.list)
	return f, err
}

func (f *follower) stop() { f.now.Stop() }

// await waits until n objects that match have been seen and returns when that was. match, if not nil, says which, and is
// shown all.
func (f *follower) await(ctx context.Context, n int, match func(metav1.Object) bool) (time.Time, error) {
	seen := map[types.UID]bool{}
	for {
		select {
		case event, ok := <-f.now.ResultChan():
			if !ok && ctx.Err() == nil {
				again, err := f.open(ctx, f.list)
				if err != nil {
					return time.Time{}, fmt.Errorf("watching again with %d of %d objects seen: %w", len(seen), n, err)
				}
				f.now = again
				continue
			}
			if !ok {
				return time.Time{}, fmt.Errorf("%d of %d objects are there: %w", len(seen), n, ctx.Err())
			}
			if event.Type == watch.Error {
				return time.Time{}, fmt.Errorf("watching: %w", apierrors.FromObject(event.Object))
			}
			o, err := meta.Accessor(event.Object)
			if err != nil {
				return time.Time{}, err
			}
			if match != nil && !match(o) {
				continue
			}
			if seen[o.GetUID()] = true; len(seen) == n {
				return time.Now(), nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%d of %d objects are there: %w", len(seen), n, ctx.Err())
		}
	}
}

// stages are when pods had come how far.
type stages struct {
	first, all time.Time // exist
	bound      time.Time // all
}

// awaitBound waits until n pods have been seen bound to a node.
func (f *follower) awaitBound(ctx context.Context, n int) (s stages, err error) {
	seen := map[types.UID]bool{}
	s.bound, err = f.await(ctx, n, func(o metav1.Object) bool {
		if seen[o.GetUID()] = true; s.first.IsZero() {
			s.first = time.Now()
		}
		if len(seen) == n && s.all.IsZero() {
			s.all = time.Now()
		}
		p, ok := o.(*corev1.Pod)
		return ok && p.Spec.NodeName != ""
	})
	return s, err
}

func deployment(name, value string, pods int) *appsv1.Deployment {
	labels := map[string]string{"app": name, label: value}
	n := int32(pods)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: &n,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "bench.invalid/web:1"}}},
			},
		},
	}
}

// times are when the parts of a rollout were there, from sending the first Deployment.
type times struct{ created, replicaSets, firstPod, pods, bound time.Duration }

// rollout creates n Deployments at once, whose objects get the label value.
func (s *server) rollout(ctx context.Context, value string, n int) (times, error) {
	ctx, cancel := context.WithTimeout(ctx, rolloutPatience)
	defer cancel()
	replicaSets, err := follow(ctx, value, s.client.AppsV1().ReplicaSets(namespace).Watch)
	if err != nil {
		return times{}, fmt.Errorf("watching ReplicaSets of %s: %w", s.name, err)
	}
	defer replicaSets.stop()
	pods, err := follow(ctx, value, s.client.CoreV1().Pods(namespace).Watch)
	if err != nil {
		return times{}, fmt.Errorf("watching pods of %s: %w", s.name, err)
	}
	defer pods.stop()

	var wait sync.WaitGroup
	var replicaSetsAt time.Time
	var podsAt stages
	var replicaSetsErr, podsErr error
	wait.Go(func() { replicaSetsAt, replicaSetsErr = replicaSets.await(ctx, n, nil) })
	wait.Go(func() { podsAt, podsErr = pods.awaitBound(ctx, n*replicas) })
	errs := make([]error, n)
	var create sync.WaitGroup
	began := time.Now()
	for k := range n {
		create.Go(func() {
			d := deployment(fmt.Sprintf("%s-%d", value, k), value, replicas)
			if _, err := s.client.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
				errs[k] = fmt.Errorf("creating Deployment %s on %s: %w", d.Name, s.name, err)
			}
		})
	}
	create.Wait()
	created := time.Now()
	if err := errors.Join(errs...); err != nil {
		cancel()
		wait.Wait()
		return times{}, err
	}
	wait.Wait()
	if replicaSetsErr != nil {
		return times{}, fmt.Errorf("waiting for the ReplicaSets of %s on %s: %w", value, s.name, replicaSetsErr)
	}
	if podsErr != nil {
		return times{}, fmt.Errorf("waiting for the pods of %s on %s: %w", value, s.name, podsErr)
	}
	return times{created.Sub(began), replicaSetsAt.Sub(began), podsAt.first.Sub(began), podsAt.all.Sub(began), podsAt.bound.Sub(began)}, nil
}

// clear deletes the Deployments with the label value and waits until all that they made is gone.
func (s *server) clear(ctx context.Context, value string) error {
	ctx, cancel := context.WithTimeout(ctx, rolloutPatience)
	defer cancel()
	list := metav1.ListOptions{LabelSelector: label + "=" + value}
	background := metav1.DeletePropagationBackground
	err := s.client.AppsV1().Deployments(namespace).DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: &background}, list)
	if err != nil {
		return fmt.Errorf("deleting the Deployments of %s on %s: %w", value, s.name, err)
	}
	list.ResourceVersion, list.Limit = "0", 1
	for {
		pods, err := s.client.CoreV1().Pods(namespace).List(ctx, list)
		if err != nil {
			return fmt.Errorf("listing pods of %s: %w", s.name, err)
		}
		replicaSets, err := s.client.AppsV1().ReplicaSets(namespace).List(ctx, list)
		if err != nil {
			return fmt.Errorf("listing ReplicaSets of %s: %w", s.name, err)
		}
		if len(pods.Items)+len(replicaSets.Items) == 0 {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the garbage collection of %s on %s: %w", value, s.name, err)
		}
	}
}

// rollouts measures single Deployments, with the kinds of measurement taking turns.
func (b *bench) rollouts(ctx context.Context, wasmServer, nativeServer, k3sServer *server) error {
	asleep, warm := "asleep", "warm"
	kinds := []struct {
		server *server
		result Rollout
	}{
		{wasmServer, Rollout{Mode: wasm.name, Guests: asleep}},
		{nativeServer, Rollout{Mode: native.name}},
		{wasmServer, Rollout{Mode: wasm.name, Guests: warm}},
		{k3sServer, Rollout{Mode: k3sWay.name}},
	}
	b.say("rollout: %d Deployments each with controllers asleep, warm, native and as k3s has them", b.Samples)
	before, err := wakeTimes(ctx, wasmServer)
	if err != nil {
		return err
	}
	profiled := make(chan error, 1)
	go func() {
		profiled <- b.profile(ctx, wasmServer, "profile", url.Values{"seconds": {fmt.Sprint(max(b.Samples, 5))}})
	}()
	for n := range b.Samples + 1 {
		for k := range kinds {
			s, r := kinds[k].server, &kinds[k].result
			// The first of all is not counted: connections are opened and caches filled.
			value := fmt.Sprintf("%s%s-%d", r.Mode, r.Guests, n)
			if err := s.evict(ctx, quiet); err != nil {
				return err
			}
			if r.Guests == warm {
				if err := s.wake(ctx); err != nil {
					return err
				}
			}
			if err := r.sample(ctx, s, value, n > 0); err != nil {
				return err
			}
		}
	}
	after, err := wakeTimes(ctx, wasmServer)
	if err != nil {
		return err
	}
	b.report.Wake = map[string]Histogram{}
	for name, h := range after {
		if h = h.since(before[name]); h.Count > 0 {
			b.report.Wake[name] = h
		}
	}
	load, err := loadAverage()
	for _, k := range kinds {
		k.result.Load = load
		b.report.Rollout = append(b.report.Rollout, k.result)
	}
	return errors.Join(err, <-profiled, b.unloadedRollouts(ctx, wasmServer))
}

// unloadedRollouts measures single Deployments that find nothing of the plane in memory.
func (b *bench) unloadedRollouts(ctx context.Context, s *server) (err error) {
	n := b.Samples / unloadedSamples
	if n == 0 {
		return nil
	}
	b.say("rollout: %d Deployments with controllers that have been asleep for %s", n, unloaded)
	r := Rollout{Mode: wasm.name, Guests: "unloaded"}
	for k := range n {
		if err := s.evict(ctx, unloaded); err != nil {
			return err
		}
		if err := r.sample(ctx, s, fmt.Sprintf("unloaded-%d", k), true); err != nil {
			return err
		}
	}
	r.Load, err = loadAverage()
	b.report.Rollout = append(b.report.Rollout, r)
	return err
}

// sample measures a Deployment whose objects get the label value, and removes it.
func (r *Rollout) sample(ctx context.Context, s *server, value string, counts bool) error {
	took, err := s.rollout(ctx, value, 1)
	if err != nil {
		return err
	}
	if err := s.clear(ctx, value); err != nil || !counts {
		return err
	}
	r.Created = append(r.Created, milliseconds(took.created))
	r.ReplicaSet = append(r.ReplicaSet, milliseconds(took.replicaSets))
	r.FirstPod = append(r.FirstPod, milliseconds(took.firstPod))
	r.Pods = append(r.Pods, milliseconds(took.pods))
	r.Bound = append(r.Bound, milliseconds(took.bound))
	return nil
}

// bursts measures many Deployments at once, one server after the other, several times.
func (b *bench) bursts(ctx context.Context, servers []*server) error {
	for n := range b.Bursts {
		for _, s := range servers {
			b.say("burst %d of %d: %d Deployments at once on %s", n+1, b.Bursts, b.Burst, s.name)
			result, err := b.burst(ctx, s, fmt.Sprintf("burst%d", n))
			if err != nil {
				return err
			}
			b.report.Burst = append(b.report.Burst, result)
		}
	}
	return nil
}

// burstProfile is how many seconds of a burst a profile of the CPU shows.
const burstProfile = 8

func (b *bench) burst(ctx context.Context, s *server, value string) (result Burst, err error) {
	result = Burst{Mode: s.mode.name, Deployments: b.Burst}
	if err := s.evict(ctx, time.Second); err != nil {
		return result, err
	}
	memory, err := memoryOf(s.pids())
	if err != nil {
		return result, err
	}
	result.Before = memory.Anonymous
	before, err := usageOf(s.pids())
	if err != nil {
		return result, err
	}
	guestsBefore, err := s.guests(ctx)
	if err != nil {
		return result, err
	}
	profiled := make(chan error, 1)
	go func() {
		profiled <- b.profile(ctx, s, "profile", url.Values{"seconds": {fmt.Sprint(burstProfile)}})
	}()
	defer func() { err = errors.Join(err, <-profiled) }()
	peak := watchPeak(s.pids())
	took, err := s.rollout(ctx, value, b.Burst)
	result.PeakAnonymous = peak()
	if err != nil {
		return result, err
	}
	after, err := usageOf(s.pids())
	if err != nil {
		return result, err
	}
	result.CPU = (after.cpu - before.cpu).Seconds()
	guests, err := s.guests(ctx)
	if err != nil {
		return result, err
	}
	result.Guests = map[string]float64{}
	for k, g := range guests {
		if used := g.CPUSeconds - guestsBefore[k].CPUSeconds; used > 0 {
			result.Guests[g.Name] = used
		}
	}
	result.Created, result.ReplicaSets = took.created.Seconds(), took.replicaSets.Seconds()
	result.Pods, result.Bound = took.pods.Seconds(), took.bound.Seconds()
	began := time.Now()
	if err := s.clear(ctx, value); err != nil {
		return result, err
	}
	result.Gone = time.Since(began).Seconds()
	result.Load, err = loadAverage()
	return result, err
}

// watchPeak looks at the anonymous memory of some processes until the function that it returns is called, which returns the
// highest value.
func watchPeak(pids []int) (stop func() int64) {
	ctx, cancel := context.WithCancel(context.Background())
	peak := make(chan int64)
	go func() {
		var highest int64
		for {
			if m, err := memoryOf(pids); err == nil { // a process that is gone shows elsewhere
				highest = max(highest, m.Anonymous)
			}
			if pause(ctx, 100*time.Millisecond) != nil {
				peak <- highest
				return
			}
		}
	}()
	return func() int64 {
		cancel()
		return <-peak
	}
}
