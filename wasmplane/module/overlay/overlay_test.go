package overlay

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

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
	for _, p := range Patches {
		patched, err := os.ReadFile(o.Replace[filepath.Join(out, "src", p.Module, p.File)])
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(patched), p.Old) || !strings.Contains(string(patched), p.New) {
			t.Errorf("%s/%s is not patched", p.Module, p.File)
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
	dir := t.TempDir()
	for text, want := range map[string]bool{"a := 1": true, "a := 1; a := 1": false, "a := 2": false} {
		if err := os.WriteFile(filepath.Join(dir, "f.go"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Patch{Module: "m", File: "f.go", Old: "a := 1", New: "a := 3"}.apply(dir)
		if (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
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
