package scheduler

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		file     string
		extended bool
		contains string
	}{
		"default": {contains: `"schedulerName":"default-scheduler"`},
		"profile": {file: `
profiles:
- schedulerName: packing
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated}}
`, contains: `"type":"MostAllocated"`},
		"extender": {file: "extenders: [{urlPrefix: 'http://127.0.0.1:1', filterVerb: filter}]\n", extended: true, contains: `"urlPrefix"`},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"pod-max-in-unschedulable-pods-duration=7m"}
			if c.file != "" {
				file := filepath.Join(t.TempDir(), "scheduler.yaml")
				text := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n" + c.file
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "config="+file)
			}
			s, err := New(args)
			if err != nil {
				t.Fatal(err)
			}
			got, err := s.Configuration(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got.Extended != c.extended || got.Unschedulable != 7*time.Minute || !bytes.Contains(got.Config, []byte(c.contains)) {
				t.Errorf("%+v %s", got, got.Config)
			}
		})
	}
	s, err := New([]string{"config=/none.yaml"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Configuration(t.Context()); err == nil || !strings.Contains(err.Error(), "/none.yaml") {
		t.Errorf("no such file: %v", err)
	}
}
