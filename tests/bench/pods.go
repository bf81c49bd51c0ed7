package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// podsOfOne is how many replicas a Deployment has at most that is there to fill a cluster.
	podsOfOne = 100
	// fillers is the label value of those.
	fillers = "filler"
	// sampleFor and sampleEvery say how memory is measured: the median over a time in which it rises and falls with
	// the garbage collector, which an idle server runs each four minutes (see cmd/dormouse/memory.go).
	sampleFor   = 5 * time.Minute
	sampleEvery = time.Second
	// createAtATime bounds the requests with which objects are copied.
	createAtATime = 10
)

// Filled is the memory of a server before and after it has got many pods.
type Filled struct {
	Mode   string `json:"mode"`
	Pods   int    `json:"pods"`
	Empty  Memory `json:"empty"`
	Filled Memory `json:"filled"` // every guest is asleep
	Parts  *Parts `json:"parts"`  // of that, a moment later
}

// fill has the server's controllers make n pods, and waits until they run. Where there are no controllers, what others
// have made on the reference is copied.
func (s *server) fill(ctx context.Context, n int, reference *server) error {
	ctx, cancel := context.WithTimeout(ctx, 2*rolloutPatience)
	defer cancel()
	pods, err := follow(ctx, fillers, s.client.CoreV1().Pods(namespace).Watch)
	if err != nil {
		return fmt.Errorf("watching pods of %s: %w", s.name, err)
	}
	defer pods.stop()
	if s.controllers {
		for k := 0; k*podsOfOne < n; k++ {
			d := deployment(fmt.Sprintf("%s-%d", fillers, k), fillers, min(podsOfOne, n-k*podsOfOne))
			if _, err := s.client.AppsV1().Deployments(namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
				return fmt.Errorf("creating Deployment %s on %s: %w", d.Name, s.name, err)
			}
		}
	} else if err := s.copyFrom(ctx, reference); err != nil {
		return fmt.Errorf("copying the objects of %s to %s: %w", reference.name, s.name, err)
	}
	_, err = pods.await(ctx, n, func(o metav1.Object) bool {
		p, ok := o.(*corev1.Pod)
		return ok && p.Status.Phase == corev1.PodRunning
	})
	if err != nil {
		return fmt.Errorf("waiting for %d pods to run on %s: %w", n, s.name, err)
	}
	return nil
}

// copyFrom copies what is in the namespace of another server and takes memory: workloads, and the events about them.
// The pods begin anew, and are bound as a scheduler does it: that is remembered by the API server, too.
func (s *server) copyFrom(ctx context.Context, from *server) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(createAtATime)
	deployments, err := from.client.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		group.Go(func() error {
			fresh(&d)
			to := s.client.AppsV1().Deployments(namespace)
			created, err := to.Create(ctx, &d, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			created.Status = d.Status
			_, err = to.UpdateStatus(ctx, created, metav1.UpdateOptions{})
			return err
		})
	}
	replicaSets, err := from.client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, r := range replicaSets.Items {
		group.Go(func() error {
			fresh(&r)
			to := s.client.AppsV1().ReplicaSets(namespace)
			created, err := to.Create(ctx, &r, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			created.Status = r.Status
			_, err = to.UpdateStatus(ctx, created, metav1.UpdateOptions{})
			return err
		})
	}
	pods, err := from.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, p := range pods.Items {
		group.Go(func() error {
			fresh(&p)
			node := p.Spec.NodeName
			p.Spec.NodeName, p.Status = "", corev1.PodStatus{}
			to := s.client.CoreV1().Pods(namespace)
			if _, err := to.Create(ctx, &p, metav1.CreateOptions{}); err != nil {
				return err
			}
			return to.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: p.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{})
		})
	}
	events, err := from.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, e := range events.Items {
		group.Go(func() error {
			fresh(&e)
			_, err := s.client.CoreV1().Events(namespace).Create(ctx, &e, metav1.CreateOptions{})
			return err
		})
	}
	return group.Wait()
}

// fresh removes what only the API server may give an object.
func fresh(o metav1.Object) {
	o.SetUID("")
	o.SetResourceVersion("")
	o.SetGeneration(0)
	o.SetCreationTimestamp(metav1.Time{})
	o.SetManagedFields(nil)
}

// pods measures what many pods cost in memory while nothing happens to them.
func (b *bench) pods(ctx context.Context) error {
	servers, stop, err := b.startServers(ctx, "pods", wasm, native, bare)
	if err != nil {
		return err
	}
	return errors.Join(b.measurePods(ctx, servers), stop())
}

func (b *bench) measurePods(ctx context.Context, servers []*server) error {
	b.say("pods: %s until memory is measured, then %d pods and the same again", b.Settle, b.Pods)
	for _, s := range servers {
		if err := s.prepare(ctx); err != nil {
			return err
		}
	}
	empty, err := b.settledMemory(ctx, servers)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if err := s.fill(ctx, b.Pods, servers[0]); err != nil {
			return err
		}
	}
	filled, err := b.settledMemory(ctx, servers)
	if err != nil {
		return err
	}
	for k, s := range servers {
		if err := b.profile(ctx, s, "heap", nil); err != nil {
			return err
		}
		parts, err := partsOf(ctx, s)
		if err != nil {
			return err
		}
		b.report.Filled = append(b.report.Filled, Filled{Mode: s.mode.name, Pods: b.Pods, Empty: empty[k], Filled: filled[k], Parts: parts})
	}
	return nil
}

// settledMemory is the memory of each server once nothing has happened for a while and every guest is asleep.
func (b *bench) settledMemory(ctx context.Context, servers []*server) ([]Memory, error) {
	if err := pause(ctx, b.Settle); err != nil {
		return nil, err
	}
	for _, s := range servers {
		if err := s.evict(ctx, quiet); err != nil {
			return nil, err
		}
	}
	samples := make([][]Memory, len(servers))
	for end := time.Now().Add(min(sampleFor, b.Settle)); time.Now().Before(end); {
		for k, s := range servers {
			m, err := memoryOf(s.pids())
			if err != nil {
				return nil, err
			}
			samples[k] = append(samples[k], m)
		}
		if err := pause(ctx, min(sampleEvery, max(time.Until(end), 0))); err != nil {
			return nil, err
		}
	}
	medians := make([]Memory, len(servers))
	for k := range servers {
		medians[k] = medianMemory(samples[k])
	}
	return medians, nil
}
