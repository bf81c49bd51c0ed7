package overlay

import (
	"context"
	"encoding/json"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/dormouse-k8s/dormouse/wasmplane/module/overlay/k8s.io/kubernetes/pkg/controlplane"
	"github.com/dormouse-k8s/dormouse/wasmplane/module/overlay/k8s.io/kubernetes/pkg/controlplane/apiserver"
	"github.com/dormouse-k8s/dormouse/wasmplane/module/overlay/k8s.io/kubernetes/pkg/kubelet/eviction"
)

const root = "../../.."

func TestPrepare(t *testing.T) {
	out := t.TempDir()
	flags, err := Prepare(context.Background(), root, out)
	if err != nil {
		t.Fatal(err)
	}
	if len(flags) != 2 {
		t.Fatalf("flags %v", flags)
	}
	var o struct{ Replace map[string]string }
	b, err := os.ReadFile(filepath.Join(out, "overlay.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &o); err != nil {
		t.Fatal(err)
	}
	goroot, err := moduleDir(context.Background(), root, std)
	if err != nil {
		t.Fatal(err)
	}
	read := func(module, file string) string {
		from := filepath.Join(out, "src", module, file)
		if module == std {
			from = filepath.Join(goroot, file)
		}
		b, err := os.ReadFile(o.Replace[from])
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, p := range Patches {
		text := read(p.Module, p.File)
		if !strings.Contains(text, p.New) || strings.Contains(strings.ReplaceAll(text, p.New, ""), p.Old) {
			t.Errorf("%s/%s is not patched", p.Module, p.File)
		}
	}
	for _, x := range Trims {
		if _, err := parser.ParseFile(token.NewFileSet(), x.File, read(x.Module, x.File), 0); err != nil {
			t.Errorf("%s/%s: %v", x.Module, x.File, err)
		}
		for _, name := range x.Drop {
			if to, ok := o.Replace[filepath.Join(out, "src", x.Module, filepath.Dir(x.File), name)]; !ok || to != "" {
				t.Errorf("%s is not dropped", name)
			}
		}
	}
	for _, x := range Omissions {
		f, err := parser.ParseFile(token.NewFileSet(), x.File, read(x.Module, x.File), parser.ImportsOnly)
		if err != nil {
			t.Fatalf("%s/%s: %v", x.Module, x.File, err)
		}
		if x.File == "kubernetes/clientset.go" || strings.HasSuffix(x.File, "clientset/clientset.go") {
			continue // the clients are still made, only that nobody can reach them
		}
		for _, i := range f.Imports {
			if slices.Contains(x.Packages, strings.Trim(i.Path.Value, `"`)) {
				t.Errorf("%s/%s imports %s", x.Module, x.File, i.Path.Value)
			}
		}
	}
	for _, a := range Additions {
		if read(a.Module, a.File) == "" {
			t.Errorf("%s/%s is not added", a.Module, a.File)
		}
	}
	for from, to := range o.Replace {
		if to == "" {
			if _, err := os.Stat(from); err != nil {
				t.Errorf("deletes what is not there: %v", err)
			}
		} else if _, err := os.Stat(to); err != nil {
			t.Error(err)
		}
	}
}

func TestPatchMustFit(t *testing.T) {
	for text, want := range map[string]bool{"a := 1": true, "a := 1; a := 1": false, "a := 2": false} {
		_, err := Patch{Module: "m", File: "f.go", Old: "a := 1", New: "a := 3"}.apply([]byte(text))
		if (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestOmission(t *testing.T) {
	const upstream = `// Package p is upstream's.
package p

import (
	a "example.org/a/v1"
	old "example.org/a/v1beta1"
	_ "example.org/effect"
	_ "example.org/old"
)

var all = []func(){
	a.Add, // first
	// second
	old.Add,
}

// All are all.
type All interface {
	A() a.Interface // first
	Old() old.Interface
}

// Old is the second.
func (c *clients) Old() old.Interface { return c.old }

// For is for one.
func For(n int) any {
	switch n {
	// the first
	case a.N:
		return a.New()
	// the second
	case old.N:
		return old.New()
	}
	return nil
}
`
	const want = `// Package p is upstream's.
package p

import (
	a "example.org/a/v1"
	_ "example.org/effect"
)

var all = []func(){
	a.Add,
}

// All are all.
type All interface {
	A() a.Interface
}

// For is for one.
func For(n int) any {
	switch n {
	case a.N:
		return a.New()
	}
	return nil
}
`
	o := Omission{File: "p.go", Packages: []string{"example.org/a/v1beta1", "example.org/old"}}
	b, err := o.apply([]byte(upstream))
	if err != nil {
		t.Fatal(err)
	}
	blank := regexp.MustCompile(`\n\s*\n`) // what is gone leaves some lines
	lines := func(text string) string { return blank.ReplaceAllString(text, "\n") }
	if got, err := format.Source(b); err != nil || lines(string(got)) != lines(want) {
		t.Errorf("%s\n%v, want\n%s", got, err, want)
	}
	o.Packages = append(o.Packages, "example.org/other")
	if _, err := o.apply([]byte(upstream)); err == nil || !strings.Contains(err.Error(), "example.org/other") {
		t.Errorf("a package that is not there: %v", err)
	}
}

func TestTrim(t *testing.T) {
	const upstream = `//go:build linux

// Package p is upstream's.
package p

import (
	"fmt"
	"os"

	_ "embed"
	klog "example.org/log/v2"
	"example.org/version/v3"
)

// T stays.
type T struct{}

// M stays.
func (t *T) M() { fmt.Println(version.X) }

// gone goes.
func (t *T) gone() { os.Exit(1) }

const (
	a = 1 // goes
	b = 2 // stays
)

func f() { klog.Info() }
`
	const want = `//go:build linux

// Package p is upstream's.
package p

import (
	"fmt"

	_ "embed"

	"example.org/version/v3"
)

// T stays.
type T struct{}

// M stays.
func (t *T) M() { fmt.Println(version.X) }

const (
	b = 2 // stays
)
`
	got, err := Trim{File: "p.go", Keep: []string{"T", "T.M", "b"}}.apply([]byte(upstream))
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
	if _, err := (Trim{File: "p.go", Keep: []string{"T", "T.N"}}).apply([]byte(upstream)); err == nil || !strings.Contains(err.Error(), "T.N") {
		t.Errorf("what is to be kept is not there: %v", err)
	}
}

func TestCheck(t *testing.T) {
	if err := Check([]string{"fmt", "k8s.io/client-go/util/workqueue"}); err != nil {
		t.Error(err)
	}
	for p := range Forbidden {
		if Check([]string{"fmt", p}) == nil {
			t.Errorf("%s was accepted", p)
		}
	}
}

// What stands in for upstream's package is upstream's text.
func TestEvictionIsUpstreams(t *testing.T) {
	source, err := moduleDir(context.Background(), root, "k8s.io/kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := os.ReadFile(filepath.Join(source, "pkg/kubelet/eviction/helpers.go"))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile("k8s.io/kubernetes/pkg/kubelet/eviction/eviction.go")
	if err != nil {
		t.Fatal(err)
	}
	_, function, _ := strings.Cut(string(ours), "// PodIsEvicted")
	if !strings.Contains(string(upstream), "// PodIsEvicted"+function) {
		t.Error("PodIsEvicted is not as upstream has it")
	}
	if !strings.Contains(string(upstream), `Reason = "`+eviction.Reason+`"`) {
		t.Error("Reason is not as upstream has it")
	}
	if !eviction.PodIsEvicted(v1.PodStatus{Phase: v1.PodFailed, Reason: "Evicted"}) {
		t.Error("an evicted pod is not recognised")
	}
}

// What stands in for upstream's packages has upstream's values.
func TestConstantsAreUpstreams(t *testing.T) {
	source, err := moduleDir(context.Background(), root, "k8s.io/kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := os.ReadFile(filepath.Join(source, "pkg/controlplane/apiserver/server.go"))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"IdentityLeaseComponentLabelKey": controlplane.IdentityLeaseComponentLabelKey, "KubeAPIServer": apiserver.KubeAPIServer,
	} {
		if !strings.Contains(string(upstream), name+` = "`+value+`"`) {
			t.Errorf("%s is not as upstream has it", name)
		}
	}
}
