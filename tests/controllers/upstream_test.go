package controllers

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"github.com/dormouse-k8s/dormouse/manifests"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
	"github.com/dormouse-k8s/dormouse/wasmplane/controllers/options"
)

// TestNoControllerIsMissing: what kube-controller-manager registers is declared, and
// nothing else but the scheduler.
func TestNoControllerIsMissing(t *testing.T) {
	declared := map[string]bool{}
	for _, d := range controllers.All() {
		declared[d.Name] = true
	}
	upstream := app.NewControllerDescriptors()
	for _, name := range slices.Sorted(maps.Keys(upstream)) {
		if !declared[name] {
			t.Errorf("upstream's %s is not declared", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		if upstream[name] == nil && name != options.Scheduler {
			t.Errorf("%s is declared, and upstream has no such controller", name)
		}
	}
}

// resourceTypes are the Go types of built-in resources by name, those of version v1
// where there is one.
func resourceTypes() map[string]reflect.Type {
	types := map[string]reflect.Type{}
	for gvk, typ := range scheme.Scheme.AllKnownTypes() {
		plural, _ := meta.UnsafeGuessKindToResource(gvk)
		name := plural.GroupResource().String()
		if types[name] == nil || gvk.Version == "v1" {
			types[name] = typ
		}
	}
	return types
}

// defining are the resources that the garbage collector and the quota controller
// watch for new kinds. Their types are not among those of Kubernetes itself.
var defining = []string{"customresourcedefinitions.apiextensions.k8s.io", "apiservices.apiregistration.k8s.io"}

func TestResourcesExist(t *testing.T) {
	types := resourceTypes()
	exists := func(d controllers.Declaration, resources ...string) {
		for _, r := range resources {
			if types[r] == nil && r != "*" && !slices.Contains(defining, r) {
				t.Errorf("%s: there is no resource %s", d.Name, r)
			}
		}
	}
	for _, d := range controllers.All() {
		exists(d, d.Resources...)
		exists(d, slices.Collect(maps.Keys(d.Wait))...)
		exists(d, slices.Collect(maps.Keys(d.Owned))...)
		exists(d, slices.Collect(maps.Keys(d.Having))...)
		exists(d, slices.Collect(maps.Keys(d.Urgent))...)
		exists(d, slices.Collect(maps.Keys(d.Purpose))...)
		exists(d, slices.Collect(maps.Keys(d.Changing))...)
		exists(d, slices.Collect(maps.Keys(d.Counting))...)
		exists(d, slices.Collect(maps.Keys(d.Without))...)
		exists(d, slices.Concat(slices.Collect(maps.Values(d.Without))...)...)
		exists(d, d.TimersFor...)
	}
}

// TestFieldsExist: the fields of declarations are where Kubernetes' types have them.
func TestFieldsExist(t *testing.T) {
	types := resourceTypes()
	for _, d := range controllers.All() {
		for _, declared := range []map[string][]controllers.Field{d.Having, d.Purpose, d.Urgent, d.Changing, d.Counting} {
			for resource, fields := range declared {
				typ := types[resource]
				if resource == "*" {
					typ = reflect.TypeFor[metav1.PartialObjectMetadata]()
				}
				for _, f := range fields {
					name, typ := fieldAt(typ, f.Path)
					if name != f.Name {
						t.Errorf("%s: path %v in %s is %q, declared as %q", d.Name, f.Path, resource, name, f.Name)
					} else if f.Value != "" && typ.Kind() != reflect.String {
						t.Errorf("%s: %s of %s is to be %q, and is a %s", d.Name, f.Name, resource, f.Value, typ)
					}
				}
			}
		}
	}
}

// fieldAt follows a path of protobuf field numbers. It returns the name as in JSON,
// "" if there is no such field, and the type. A map is a list of keys and values.
func fieldAt(typ reflect.Type, path []int) (string, reflect.Type) {
	var names []string
	for _, number := range path {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() == reflect.Map && number == 1 {
			names, typ = append(names, "key"), typ.Key()
			continue
		}
		if typ.Kind() != reflect.Struct {
			return "", nil
		}
		found := false
		for i := range typ.NumField() {
			f := typ.Field(i)
			// "bytes,2,opt,name=volumeSource"
			tag := strings.Split(f.Tag.Get("protobuf"), ",")
			if len(tag) < 2 || tag[1] != strconv.Itoa(number) {
				continue
			}
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" { // "" is inline
				names = append(names, name)
			}
			typ, found = f.Type, true
			break
		}
		if !found {
			return "", nil
		}
	}
	return strings.Join(names, "."), typ
}

// TestGrants: each controller may list and watch what it declares, which is what an
// informer does. Upstream's roles allow it, or ours do; never both.
func TestGrants(t *testing.T) {
	upstream := rulesOf(t, slices.Concat(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()),
		slices.Concat(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()))
	roles, bindings := ourRoles(t)
	ours := rulesOf(t, roles, bindings)
	for _, d := range controllers.All() {
		for _, r := range d.Resources {
			granted := slices.Contains(d.Grants, r)
			if byUpstream := watches(upstream(d.Identity), r); byUpstream == granted {
				t.Errorf("%s: may watch %s by upstream's role: %v, granted: %v", d.Name, r, byUpstream, granted)
			}
			if byUs := watches(ours(d.Identity), r); granted && !byUs {
				t.Errorf("%s: watching %s is granted, but not by a role", d.Name, r)
			}
		}
	}
	// A role that controllers share must not give one of them what only another
	// lacks; upstream's role would have to lack it, too.
	for _, b := range bindings {
		for _, s := range b.Subjects {
			identity := serviceaccount.MakeUsername(s.Namespace, s.Name)
			for _, rule := range ours(identity) {
				for _, group := range rule.APIGroups {
					for _, resource := range rule.Resources {
						r := schema.GroupResource{Group: group, Resource: resource}.String()
						if resource == rbacv1.ResourceAll {
							r = "*"
						}
						if watches(upstream(identity), r) {
							t.Errorf("%s is granted to watch %s, which upstream's roles allow anyway", identity, r)
						}
					}
				}
			}
		}
	}
}

// watches reports whether rules allow to list and to watch a resource; "*" is any.
func watches(rules []rbacv1.PolicyRule, resource string) bool {
	r := schema.ParseGroupResource(resource)
	if resource == "*" {
		r = schema.GroupResource{Group: "example.com", Resource: "things"}
	}
	for _, verb := range []string{"list", "watch"} {
		if !rbac.RulesAllow(authorizer.AttributesRecord{Verb: verb, APIGroup: r.Group, Resource: r.Resource, ResourceRequest: true}, rules...) {
			return false
		}
	}
	return true
}

// rulesOf returns what says which rules apply to a user.
func rulesOf(t *testing.T, roles []rbacv1.ClusterRole, bindings []rbacv1.ClusterRoleBinding) func(name string) []rbacv1.PolicyRule {
	resolver, _ := validation.NewTestRuleResolver(nil, nil, pointers(roles), pointers(bindings))
	return func(name string) []rbacv1.PolicyRule {
		var u user.Info = &user.DefaultInfo{Name: name, Groups: []string{user.AllAuthenticated}}
		if namespace, account, err := serviceaccount.SplitUsername(name); err == nil {
			u = serviceaccount.UserInfo(namespace, account, "")
		}
		rules, err := resolver.RulesFor(t.Context(), u, "")
		if err != nil {
			t.Fatal(err)
		}
		return rules
	}
}

func pointers[T any](list []T) []*T {
	var p []*T
	for i := range list {
		p = append(p, &list[i])
	}
	return p
}

func ourRoles(t *testing.T) (roles []rbacv1.ClusterRole, bindings []rbacv1.ClusterRoleBinding) {
	content, err := manifests.FS.ReadFile("rbac/controllers.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return roles, bindings
		} else if err != nil {
			t.Fatal(err)
		}
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(document, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		switch o := object.(type) {
		case *rbacv1.ClusterRole:
			roles = append(roles, *o)
		case *rbacv1.ClusterRoleBinding:
			bindings = append(bindings, *o)
		}
	}
}
