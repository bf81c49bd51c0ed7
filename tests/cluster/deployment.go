package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Settled compares a namespace with what its Deployments ask for, to the object:
//
//   - each Deployment has rolled out what it says, with all replicas available;
//   - of its ReplicaSets one has its pod template and its replicas, the others
//     have none; no two have the same template; there are no more than the
//     Deployment keeps, and none without a Deployment;
//   - each ReplicaSet has exactly its replicas in pods, and there is no other pod;
//   - each Service leads to exactly the ready pods it selects, in its
//     EndpointSlices and in its Endpoints.
//
// It is for namespaces in which Deployments and Services with a selector are all there is.
func (c *Cluster) Settled(ctx context.Context, namespace string) error {
	deployments, err := c.AppsV1().Deployments(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	sets, err := c.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	pods, err := c.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var errs []error
	setsOf := map[string][]appsv1.ReplicaSet{} // by UID of the Deployment
	for _, s := range sets.Items {
		setsOf[owner(&s)] = append(setsOf[owner(&s)], s)
	}
	podsOf := map[string]int32{} // by UID of the ReplicaSet
	for _, p := range pods.Items {
		if p.DeletionTimestamp != nil {
			errs = append(errs, fmt.Errorf("pod %s is still ending", p.Name))
		}
		podsOf[owner(&p)]++
	}
	for _, d := range deployments.Items {
		own := setsOf[string(d.UID)]
		delete(setsOf, string(d.UID))
		if err := rolledOut(&d, own); err != nil {
			errs = append(errs, fmt.Errorf("deployment %s: %w", d.Name, err))
		}
		for _, s := range own {
			if n := podsOf[string(s.UID)]; n != *s.Spec.Replicas {
				errs = append(errs, fmt.Errorf("replica set %s has %d pods and wants %d", s.Name, n, *s.Spec.Replicas))
			}
			delete(podsOf, string(s.UID))
		}
	}
	for uid, surplus := range setsOf {
		errs = append(errs, fmt.Errorf("%d replica sets, the first %s, of no deployment (owner %q)", len(surplus), surplus[0].Name, uid))
	}
	for uid, n := range podsOf {
		errs = append(errs, fmt.Errorf("%d pods of no replica set (owner %q)", n, uid))
	}
	errs = append(errs, c.serve(ctx, namespace, pods.Items))
	return errors.Join(errs...)
}

// owner returns the UID of the controller that an object belongs to.
func owner(o metav1.Object) string {
	if ref := metav1.GetControllerOf(o); ref != nil {
		return string(ref.UID)
	}
	return ""
}

func rolledOut(d *appsv1.Deployment, sets []appsv1.ReplicaSet) error {
	want, s := *d.Spec.Replicas, d.Status
	if s.ObservedGeneration != d.Generation || s.Replicas != want || s.UpdatedReplicas != want || s.AvailableReplicas != want {
		return fmt.Errorf("wants %d replicas of generation %d; status: %d of generation %d, %d updated, %d available",
			want, d.Generation, s.Replicas, s.ObservedGeneration, s.UpdatedReplicas, s.AvailableReplicas)
	}
	if keep := int(*d.Spec.RevisionHistoryLimit) + 1; len(sets) > keep {
		return fmt.Errorf("has %d replica sets, keeps no more than %d", len(sets), keep)
	}
	current := 0
	for i := range sets {
		for j := range sets[:i] {
			if sameTemplate(&sets[i].Spec.Template, &sets[j].Spec.Template) {
				return fmt.Errorf("replica sets %s and %s have the same template", sets[i].Name, sets[j].Name)
			}
		}
		switch n := *sets[i].Spec.Replicas; {
		case sameTemplate(&sets[i].Spec.Template, &d.Spec.Template):
			current++
			if n != want {
				return fmt.Errorf("replica set %s wants %d replicas, not %d", sets[i].Name, n, want)
			}
		case n != 0:
			return fmt.Errorf("old replica set %s wants %d replicas", sets[i].Name, n)
		}
	}
	if current != 1 {
		return fmt.Errorf("%d replica sets have the current template", current)
	}
	return nil
}

// sameTemplate compares templates but for the label that the controller adds.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	delete(a.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	delete(b.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return equality.Semantic.DeepEqual(a, b)
}

// serve compares each Service's EndpointSlices and Endpoints with the pods.
func (c *Cluster) serve(ctx context.Context, namespace string, pods []corev1.Pod) error {
	services, err := c.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range services.Items {
		want := map[string]bool{}
		for _, p := range pods {
			if matches(s.Spec.Selector, p.Labels) && PodReady(&p) && p.DeletionTimestamp == nil {
				want[p.Status.PodIP] = true
			}
		}
		slices, endpoints, err := c.Addresses(ctx, namespace, s.Name)
		if err != nil {
			return err
		}
		if !maps.Equal(slices, want) {
			return fmt.Errorf("service %s: endpoint slices have %v, the ready pods are %v", s.Name, names(slices), names(want))
		}
		if !maps.Equal(endpoints, want) {
			return fmt.Errorf("service %s: endpoints have %v, the ready pods are %v", s.Name, names(endpoints), names(want))
		}
	}
	return nil
}

// Addresses returns a Service's ready addresses as its EndpointSlices and as its
// Endpoints have them.
func (c *Cluster) Addresses(ctx context.Context, namespace, service string) (slices, endpoints map[string]bool, err error) {
	slices, endpoints = map[string]bool{}, map[string]bool{}
	list, err := c.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	if err != nil {
		return nil, nil, err
	}
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			for _, a := range e.Addresses {
				if slices[a] {
					return nil, nil, fmt.Errorf("service %s: %s is in its endpoint slices twice", service, a)
				}
				if e.Conditions.Ready == nil || *e.Conditions.Ready {
					slices[a] = true
				}
			}
		}
	}
	//nolint:staticcheck // Endpoints are deprecated, and one of the controllers keeps them.
	old, err := c.CoreV1().Endpoints(namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	for _, subset := range old.Subsets {
		for _, a := range subset.Addresses {
			endpoints[a.IP] = true
		}
	}
	return slices, endpoints, nil
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return len(selector) > 0
}

func names(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

// PodReady reports whether a pod has the condition Ready.
func PodReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
