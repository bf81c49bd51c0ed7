package manifests

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/dormouse-k8s/dormouse/wasmplane/controllers"
)

// TestControllerRolesMatchDeclarations: each identity may read what its controllers declare as Grants,
// and no more.
func TestControllerRolesMatchDeclarations(t *testing.T) {
	declared := map[string][]string{}
	for _, d := range controllers.All() {
		if len(d.Grants) > 0 {
			declared[d.Identity] = append(declared[d.Identity], d.Grants...)
		}
	}
	roles, bindings := controllerRoles(t)
	granted := map[string][]string{}
	for name, b := range bindings {
		role, ok := roles[name]
		if want := (rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}); !ok || b.RoleRef != want {
			t.Errorf("binding %s refers to %v, there is such a role: %v", name, b.RoleRef, ok)
		}
		if len(b.Subjects) != 1 || b.Subjects[0].Kind != rbacv1.ServiceAccountKind {
			t.Fatalf("binding %s has subjects %v, want one service account", name, b.Subjects)
		}
		s := b.Subjects[0]
		if want := "system:dormouse:controller:" + s.Name; name != want {
			t.Errorf("binding %s should be named %s", name, want)
		}
		user := "system:serviceaccount:" + s.Namespace + ":" + s.Name
		for _, rule := range role.Rules {
			if !slices.Equal(rule.Verbs, []string{"get", "list", "watch"}) || len(rule.APIGroups) != 1 || len(rule.ResourceNames)+len(rule.NonResourceURLs) > 0 {
				t.Errorf("role %s: unexpected rule %v", name, rule)
			}
			for _, resource := range rule.Resources {
				granted[user] = append(granted[user], declaredAs(schema.GroupResource{Group: rule.APIGroups[0], Resource: resource}))
			}
		}
	}
	for _, m := range []map[string][]string{declared, granted} {
		for user, resources := range m {
			slices.Sort(resources)
			m[user] = slices.Compact(resources)
		}
	}
	if !reflect.DeepEqual(granted, declared) {
		t.Errorf("rbac/controllers.yaml grants %v, the controllers declare %v", granted, declared)
	}
	if !slices.Equal(slices.Sorted(maps.Keys(roles)), slices.Sorted(maps.Keys(bindings))) {
		t.Error("there are roles without a binding")
	}
}

// declaredAs is a resource as declarations name it.
func declaredAs(r schema.GroupResource) string {
	if r == (schema.GroupResource{Group: rbacv1.APIGroupAll, Resource: rbacv1.ResourceAll}) {
		return "*"
	}
	return r.String()
}

func controllerRoles(t *testing.T) (map[string]rbacv1.ClusterRole, map[string]rbacv1.ClusterRoleBinding) {
	t.Helper()
	content, err := FS.ReadFile("rbac/controllers.yaml")
	if err != nil {
		t.Fatal(err)
	}
	roles, bindings := map[string]rbacv1.ClusterRole{}, map[string]rbacv1.ClusterRoleBinding{}
	for documents := yamlreader.NewYAMLReader(bufio.NewReader(bytes.NewReader(content))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return roles, bindings
		} else if err != nil {
			t.Fatal(err)
		}
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "ClusterRole":
			var r rbacv1.ClusterRole
			if err := yaml.UnmarshalStrict(document, &r); err != nil {
				t.Fatal(err)
			}
			roles[r.Name] = r
		case "ClusterRoleBinding":
			var b rbacv1.ClusterRoleBinding
			if err := yaml.UnmarshalStrict(document, &b); err != nil {
				t.Fatal(err)
			}
			bindings[b.Name] = b
		default:
			t.Errorf("unexpected kind in\n%s", strings.TrimSpace(string(document)))
		}
	}
}
