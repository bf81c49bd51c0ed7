package parity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/dormouse-k8s/dormouse/tests/cluster"
	"github.com/dormouse-k8s/dormouse/tests/hollow"
)

// run is a case in one mode, with a namespace of its own. Objects are named as
// kubectl names them, "deployments/web", and are in that namespace if they can be.
type run struct {
	*testing.T
	*world
	ns string
}

// object is an object of any kind.
type object = unstructured.Unstructured

// within returns r for another namespace.
func (r *run) within(namespace string) *run { return &run{r.T, r.world, namespace} }

// another makes a further namespace for the case and returns r for it.
func (r *run) another(name string) *run {
	r.Helper()
	r = r.within(r.ns + "-" + name)
	r.makeNamespace()
	return r
}

func (r *run) makeNamespace() {
	r.Helper()
	r.apply("{apiVersion: v1, kind: Namespace, metadata: {name: %s}}", r.ns)
	r.reaches("serviceaccounts/default", "metadata: {name: default}") // pods need it
	r.reaches("configmaps/kube-root-ca.crt", "data: {ca.crt: '*'}")
}

// node starts a hollow node that stays until the end of the mode, or is stopped,
// and waits until pods can be bound to it.
func (r *run) node(config hollow.Config) *hollow.Node {
	r.Helper()
	n := hollow.Start(r.mode, r.Cluster, config)
	r.reaches("nodes/"+config.Name, "status: {conditions: [{type: Ready, status: 'True'}]}")
	r.tainted(config.Name, corev1.TaintNodeNotReady, false)
	r.tainted(config.Name, corev1.TaintNodeUnreachable, false)
	return n
}

// resource returns the client of a resource, "deployments" or "widgets.example.com".
func (r *run) resource(name string) dynamic.ResourceInterface {
	r.Helper()
	var mapping *meta.RESTMapping
	r.eventually("resource "+name, func(context.Context) error {
		group := schema.ParseGroupResource(name)
		kind, err := r.mapper.KindFor(group.WithVersion(""))
		if err == nil {
			mapping, err = r.mapper.RESTMapping(kind.GroupKind(), kind.Version)
		}
		if meta.IsNoMatchError(err) {
			r.mapper.Reset() // it may be new
		}
		return err
	})
	return r.client(mapping)
}

func (r *run) client(mapping *meta.RESTMapping) dynamic.ResourceInterface {
	all := r.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		return all.Namespace(r.ns)
	}
	return all
}

func (r *run) named(ref string) (dynamic.ResourceInterface, string) {
	r.Helper()
	resource, name, ok := strings.Cut(ref, "/")
	if !ok {
		r.Fatalf("%q names no object", ref)
	}
	return r.resource(resource), name
}

// parse returns the objects of a manifest, which is formatted with args.
func (r *run) parse(manifest string, args ...any) []*object {
	r.Helper()
	var all []*object
	for _, text := range strings.Split(fmt.Sprintf(manifest, args...), "\n---\n") {
		o := &object{}
		value, ok := r.value(text).(map[string]any)
		if !ok {
			r.Fatalf("not an object: %s", text)
		}
		o.Object = value
		all = append(all, o)
	}
	return all
}

// value returns what a piece of YAML says.
func (r *run) value(text string) any {
	r.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		r.Fatalf("%v: %s", err, text)
	}
	var v any
	if err := utiljson.Unmarshal(b, &v); err != nil {
		r.Fatalf("%v: %s", err, text)
	}
	return v
}

// create creates the objects of a manifest, up to the first that is refused.
func (r *run) create(manifest string, args ...any) ([]*object, error) {
	r.Helper()
	var all []*object
	for _, o := range r.parse(manifest, args...) {
		kind := o.GroupVersionKind()
		var mapping *meta.RESTMapping
		r.eventually("kind "+kind.String(), func(context.Context) (err error) {
			if mapping, err = r.mapper.RESTMapping(kind.GroupKind(), kind.Version); meta.IsNoMatchError(err) {
				r.mapper.Reset()
			}
			return err
		})
		created, err := r.client(mapping).Create(r.Context(), o, metav1.CreateOptions{})
		if err != nil {
			return all, fmt.Errorf("create %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		all = append(all, created)
	}
	return all, nil
}

// apply creates the objects of a manifest and returns the last.
func (r *run) apply(manifest string, args ...any) *object {
	r.Helper()
	all, err := r.create(manifest, args...)
	if err != nil {
		r.Fatal(err)
	}
	return all[len(all)-1]
}

// refused creates an object that the API server is not to accept, for a reason.
func (r *run) refused(reason, manifest string, args ...any) {
	r.Helper()
	r.eventually("refusal: "+reason, func(ctx context.Context) error {
		accepted, err := r.create(manifest, args...)
		switch {
		case err == nil:
			// Usage that is counted anew between admission and creation is one too low for
			// a moment, also natively.
			err := errors.New("it was accepted")
			for _, o := range accepted {
				err = errors.Join(err, r.remove(ctx, o))
			}
			return err
		case !strings.Contains(err.Error(), reason):
			return err
		}
		return nil
	})
}

// remove deletes an object at once.
func (r *run) remove(ctx context.Context, o *object) error {
	kind := o.GroupVersionKind()
	mapping, err := r.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return err
	}
	return r.client(mapping).Delete(ctx, o.GetName(), metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
}

func (r *run) get(ref string) *object {
	r.Helper()
	c, name := r.named(ref)
	o, err := c.Get(r.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return o
}

// list returns the objects with a label, "" for all, by name.
func (r *run) list(resource, selector string) []object {
	r.Helper()
	l, err := r.resource(resource).List(r.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		r.Fatal(err)
	}
	return sorted(l.Items)
}

func sorted(all []object) []object {
	slices.SortFunc(all, func(a, b object) int { return strings.Compare(a.GetName(), b.GetName()) })
	return all
}

// patch merges a piece of YAML into an object.
func (r *run) patch(ref, patch string, args ...any) {
	r.Helper()
	r.merge(ref, "", patch, args...)
}

// status merges a piece of YAML into an object's status.
func (r *run) status(ref, patch string, args ...any) {
	r.Helper()
	r.merge(ref, "status", "status: "+patch, args...)
}

func (r *run) merge(ref, subresource, patch string, args ...any) {
	r.Helper()
	c, name := r.named(ref)
	b, err := json.Marshal(r.value(fmt.Sprintf(patch, args...)))
	if err != nil {
		r.Fatal(err)
	}
	var sub []string
	if subresource != "" {
		sub = append(sub, subresource)
	}
	if _, err := c.Patch(r.Context(), name, types.MergePatchType, b, metav1.PatchOptions{}, sub...); err != nil {
		r.Fatalf("patch %s: %v", ref, err)
	}
}

// delete deletes an object, as its kind does by default or with a propagation policy.
func (r *run) delete(ref string, propagation ...metav1.DeletionPropagation) {
	r.Helper()
	c, name := r.named(ref)
	var o metav1.DeleteOptions
	if len(propagation) > 0 {
		o.PropagationPolicy = &propagation[0]
	}
	if err := c.Delete(r.Context(), name, o); err != nil {
		r.Fatalf("delete %s: %v", ref, err)
	}
}

// eventually waits until check returns nil.
func (r *run) eventually(what string, check func(context.Context) error) {
	r.Helper()
	if err := cluster.Await(r.Context(), check); err != nil {
		r.Fatalf("%s: %v", what, err)
	}
}

// holds waits until check returns nil. It must still do so at the end of the
// mode, when all cases have come to theirs.
func (r *run) holds(what string, check func(context.Context) error) {
	r.Helper()
	r.eventually(what, check)
	r.hold(hold{r.T, what, check})
}

// reaches waits until an object matches a piece of YAML, and returns it. In it
//
//   - an object has at least these fields, null says that it has not;
//   - a list has exactly these elements, but of elements with a type (conditions)
//     at least these, in any order;
//   - "*" is anything but nothing.
func (r *run) reaches(ref, want string, args ...any) *object {
	r.Helper()
	check, last := r.matches(ref, want, args...)
	r.eventually(ref, check)
	return *last
}

// want is reaches for a state that holds.
func (r *run) want(ref, want string, args ...any) *object {
	r.Helper()
	check, last := r.matches(ref, want, args...)
	r.holds(ref, check)
	return *last
}

func (r *run) matches(ref, want string, args ...any) (check func(context.Context) error, last **object) {
	r.Helper()
	c, name := r.named(ref)
	value := r.value(fmt.Sprintf(want, args...))
	last = new(*object)
	return func(ctx context.Context) error {
		o, err := c.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		*last = o
		if err := match("", value, o.Object); err != nil {
			return fmt.Errorf("%w\n%s", err, show(o))
		}
		return nil
	}, last
}

// gone waits until an object is no more. Another of its name may come.
func (r *run) gone(ref string) {
	r.Helper()
	c, name := r.named(ref)
	r.eventually(ref, func(ctx context.Context) error {
		o, err := c.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("it is still there\n%s", show(o))
	})
}

// absent is gone for an object that does not come again.
func (r *run) absent(ref string) {
	r.Helper()
	resource, name, _ := strings.Cut(ref, "/")
	c := r.resource(resource)
	r.holds(ref, func(ctx context.Context) error {
		o, err := c.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("it is there\n%s", show(o))
	})
}

// counted waits until there are exactly n objects with a label, "" for all, and
// each matches want. It returns them by name.
func (r *run) counted(n int, resource, selector, want string, args ...any) []object {
	r.Helper()
	check, last := r.counts(n, resource, selector, want, args...)
	r.eventually(fmt.Sprintf("%d %s of %q", n, resource, selector), check)
	return *last
}

// count is counted for a state that holds.
func (r *run) count(n int, resource, selector, want string, args ...any) []object {
	r.Helper()
	check, last := r.counts(n, resource, selector, want, args...)
	r.holds(fmt.Sprintf("%d %s of %q", n, resource, selector), check)
	return *last
}

func (r *run) counts(n int, resource, selector, want string, args ...any) (check func(context.Context) error, last *[]object) {
	r.Helper()
	c := r.resource(resource)
	value := r.value(fmt.Sprintf(want, args...))
	last = new([]object)
	return func(ctx context.Context) error {
		l, err := c.List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return err
		}
		*last = sorted(l.Items)
		var errs []error
		if len(l.Items) != n {
			errs = append(errs, fmt.Errorf("there are %d", len(l.Items)))
		}
		for i := range l.Items {
			if err := match(l.Items[i].GetName(), value, l.Items[i].Object); err != nil {
				errs = append(errs, err)
			}
		}
		if len(errs) > 0 {
			for i := range l.Items {
				errs = append(errs, errors.New(show(&l.Items[i])))
			}
		}
		return errors.Join(errs...)
	}, last
}

// event waits for an event about an object of the namespace.
func (r *run) event(kind, name, reason, message string) {
	r.Helper()
	r.eventually("event "+reason+" of "+name, func(ctx context.Context) error {
		l, err := r.CoreV1().Events(r.ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range l.Items {
			if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == reason && strings.Contains(e.Message, message) {
				return nil
			}
		}
		return fmt.Errorf("none of %d", len(l.Items))
	})
}

// ownedBy is the owner references of what a controller has made for an object.
func ownedBy(o *object) string {
	return fmt.Sprintf("[{apiVersion: %s, kind: %s, name: %s, uid: %s, controller: true, blockOwnerDeletion: true}]",
		o.GetAPIVersion(), o.GetKind(), o.GetName(), o.GetUID())
}

// match compares a value with what is wanted, see reaches.
func match(path string, want, got any) error {
	switch want := want.(type) {
	case map[string]any:
		have, ok := got.(map[string]any)
		if !ok && got != nil {
			return fmt.Errorf("%s is %v, want %v", path, got, want)
		}
		var errs []error
		for k, v := range want {
			errs = append(errs, match(path+"."+k, v, have[k]))
		}
		return errors.Join(errs...)
	case []any:
		have, ok := got.([]any)
		if !ok && (got != nil || len(want) > 0) {
			return fmt.Errorf("%s is %v, want %v", path, got, want)
		}
		if len(want) > 0 && typeOf(want[0]) != nil {
			return matchTyped(path, want, have)
		}
		if len(have) != len(want) {
			return fmt.Errorf("%s has %d elements, want %d: %v", path, len(have), len(want), want)
		}
		if strings.HasSuffix(path, ".endpoints") {
			return matchUnordered(path, want, have)
		}
		var errs []error
		for i := range want {
			errs = append(errs, match(fmt.Sprintf("%s[%d]", path, i), want[i], have[i]))
		}
		return errors.Join(errs...)
	case nil:
		if got != nil {
			return fmt.Errorf("%s is %v, want none", path, got)
		}
		return nil
	}
	if want != got && (want != "*" || got == nil) {
		if got == nil {
			return fmt.Errorf("%s is missing, want %v", path, want)
		}
		return fmt.Errorf("%s is %v, want %v", path, got, want)
	}
	return nil
}

// matchTyped finds for each wanted element the one of its type.
func matchTyped(path string, want, have []any) error {
	var errs []error
	for _, w := range want {
		kind := typeOf(w)
		i := slices.IndexFunc(have, func(h any) bool { return typeOf(h) == kind })
		if i < 0 {
			errs = append(errs, fmt.Errorf("%s has no %v", path, kind))
			continue
		}
		errs = append(errs, match(fmt.Sprintf("%s[%v]", path, kind), w, have[i]))
	}
	return errors.Join(errs...)
}

func typeOf(element any) any {
	m, _ := element.(map[string]any)
	return m["type"]
}

// show is an object as a failed test prints it.
func show(o *object) string {
	o = o.DeepCopy()
	o.SetManagedFields(nil)
	b, err := yaml.Marshal(o.Object)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// field returns a field of an object, nil if it has none.
func field(o *object, path ...string) any {
	v, _, err := unstructured.NestedFieldNoCopy(o.Object, path...)
	if err != nil {
		return nil
	}
	return v
}

// keepOut is a taint that keeps pods of other cases from a node.
func (r *run) keepOut() []corev1.Taint {
	return []corev1.Taint{{Key: "parity", Value: r.ns, Effect: corev1.TaintEffectNoSchedule}}
}

// evict asks for a pod's eviction.
func (r *run) evict(pod string) error {
	return r.PolicyV1().Evictions(r.ns).Evict(r.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: r.ns}})
}

// whoIs asks the API server whose token it is.
func (r *run) whoIs(token string) (string, error) {
	config := rest.AnonymousClientConfig(r.Config)
	config.BearerToken = token
	return self(r.Context(), config)
}

// self asks the API server who a client is.
func self(ctx context.Context, config *rest.Config) (string, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", err
	}
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return review.Status.UserInfo.Username, nil
}

// as returns a client of somebody else.
func (r *run) as(who rest.ImpersonationConfig) (*kubernetes.Clientset, error) {
	config := rest.CopyConfig(r.Config)
	config.Impersonate = who
	return kubernetes.NewForConfig(config)
}

// matchUnordered is match for a list whose order upstream takes from a map.
func matchUnordered(path string, want, have []any) error {
	left := slices.Clone(have)
	for i, w := range want {
		var err error
		k := slices.IndexFunc(left, func(h any) bool {
			err = match(fmt.Sprintf("%s[%d]", path, i), w, h)
			return err == nil
		})
		if k < 0 {
			return fmt.Errorf("none left is as wanted: %w", err)
		}
		left = slices.Delete(left, k, k+1)
	}
	return nil
}
