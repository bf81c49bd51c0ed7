package deploy

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func describeAll(objects []*unstructured.Unstructured) []string {
	var names []string
	for _, o := range objects {
		names = append(names, describe(o))
	}
	return names
}

func TestDecode(t *testing.T) {
	const cm = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %}\n"
	configMap := func(name string) string { return strings.ReplaceAll(cm, "%", name) }
	for _, test := range []struct {
		name, content string
		want          []string
	}{
		{"nothing", "", nil},
		{"comments only", "# one\n---\n# two\n---\n\n", nil},
		{"one", configMap("a"), []string{"ConfigMap a"}},
		{"no newline at the end", strings.TrimSpace(configMap("a")), []string{"ConfigMap a"}},
		{"several", "---\n" + configMap("a") + "---\n" + configMap("b") + "--- # three\n" + configMap("c"), []string{"ConfigMap a", "ConfigMap b", "ConfigMap c"}},
		{"Windows' line ends", strings.ReplaceAll(configMap("a")+"---\n"+configMap("b"), "\n", "\r\n"), []string{"ConfigMap a", "ConfigMap b"}},
		{"separator in a text", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    ---\n    y\n", []string{"ConfigMap a"}},
		{"JSON", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"n"}}`, []string{"ConfigMap n/a"}},
		{"several in JSON", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}` + "\n" + `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"b"}}`, []string{"ConfigMap a", "Secret b"}},
		{"list", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: a}}\n- {apiVersion: apps/v1, kind: Deployment, metadata: {name: b}}\n", []string{"Secret a", "Deployment b"}},
		{"list of a kind", "apiVersion: v1\nkind: SecretList\nitems:\n- metadata: {name: a}\n", []string{"Secret a"}},
		{"kind that ends like a list", "apiVersion: example.com/v1\nkind: AllowList\nmetadata: {name: a}\nspec: {}\n", []string{"AllowList a"}},
		{"in order of need", configMap("a") +
			"---\napiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: b}\n" +
			"---\napiVersion: v1\nkind: Namespace\nmetadata: {name: c}\n---\n" + configMap("d"),
			[]string{"Namespace c", "CustomResourceDefinition b", "ConfigMap a", "ConfigMap d"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := decode([]byte(test.content))
			if err != nil {
				t.Fatal(err)
			}
			if got := describeAll(objects); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestDecodeSaysWhatIsBroken(t *testing.T) {
	const good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n---\n"
	for _, test := range []struct{ name, content, want string }{
		{"YAML", good + "a: [1\n", "document 2: "},
		{"tab", good + "apiVersion: v1\n\tkind: X\n", "line 2"},
		{"JSON", `{"apiVersion": "v1",`, "document 1: "},
		{"no object", good + "just text\n", "document 2: not an object"},
		{"no kind", "apiVersion: v1\nmetadata: {name: a}\n", "has no kind"},
		{"no apiVersion", "kind: Secret\nmetadata: {name: a}\n", "Secret a has no apiVersion"},
		{"apiVersion", "apiVersion: a/b/c\nkind: Secret\nmetadata: {name: a}\n", "unexpected GroupVersion string: a/b/c"},
		{"no name", "apiVersion: v1\nkind: Secret\nmetadata: {generateName: a}\n", "Secret has no metadata.name"},
		{"metadata", "apiVersion: v1\nkind: Secret\nmetadata: [a]\n", "Secret: .metadata.name accessor error"},
		{"namespace that is no text", "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: no}\n", "Secret a: .metadata.namespace accessor error: false is of the type bool, expected string"},
		{"item", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: a}}\n- 5\n", "document 1: item 2: not an object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := decode([]byte(test.content))
			if err == nil || !strings.Contains(err.Error(), test.want) || objects != nil {
				t.Errorf("got %q, %v, want an error with %q", describeAll(objects), err, test.want)
			}
		})
	}
}

// TestDecodeOfAnExport: what "kubectl get -o yaml" shows can be applied elsewhere.
func TestDecodeOfAnExport(t *testing.T) {
	objects, err := decode([]byte(`
apiVersion: v1
kind: ConfigMap
metadata:
  name: a
  resourceVersion: "12345"
  uid: 0b0c
  managedFields: [{manager: kubectl}]
  labels: {tier: front}
data: {big: "12345678901234567890"}
`))
	if err != nil {
		t.Fatal(err)
	}
	o := objects[0]
	if o.GetResourceVersion() != "" || o.GetUID() != "" || o.GetManagedFields() != nil || o.GetLabels()["tier"] != "front" {
		t.Errorf("got %v", o.Object)
	}
}

func TestDecodeKeepsIntegers(t *testing.T) {
	objects, err := decode([]byte("apiVersion: example.com/v1\nkind: Big\nmetadata: {name: a}\nspec: {big: 9007199254740993}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if n, _, err := unstructured.NestedInt64(objects[0].Object, "spec", "big"); n != 9007199254740993 {
		t.Errorf("got %d, %v", n, err)
	}
}

// FuzzDecode: whatever is in a file, each object that comes out of it can be sent.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		"", "---\n", "null", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\nkind: x",
		`{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"A","metadata":{"name":"a"}}]} {"kind":1}`,
		"apiVersion: v1\nkind: SecretList\nitems: [{metadata: {name: a, uid: 1}}]\n", "\ufeff{}", "a: &a [*a]", "metadata: !!binary x\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		objects, err := decode(content)
		if err != nil && objects != nil {
			t.Error("objects beside an error")
		}
		for _, o := range objects {
			if o.GetName() == "" || o.GetKind() == "" || o.GroupVersionKind().Version == "" {
				t.Errorf("incomplete: %v", o.Object)
			}
			if _, err := o.MarshalJSON(); err != nil {
				t.Error(err)
			}
		}
	})
}
