package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dormouse-k8s/dormouse/wasmplane/plane"
)

func TestPrintControllers(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	woke, timer := now.Add(-90*time.Second), now.Add(10*time.Minute)
	list := []plane.Status{
		{Name: "deployment-controller", Identity: "system:serviceaccount:kube-system:deployment-controller", Module: "controllers", State: plane.Asleep,
			Wakes: 3, LastWake: &woke, LastWakeReason: "ADDED deployments.apps default/web", NextTimer: &timer, SnapshotBytes: 207037, Restarts: 1},
		{Name: "gc", State: plane.Warm, ResidentBytes: 13 << 20},
		{Name: "kube-scheduler", State: plane.Native},
	}
	var out bytes.Buffer
	if err := printControllers(&out, list, false, now); err != nil {
		t.Fatal(err)
	}
	want := `NAME                    STATE    WAKES   LAST WAKE   REASON                               NEXT TIMER   RESIDENT   SNAPSHOT   RESTARTS
deployment-controller   asleep   3       90s ago     ADDED deployments.apps default/web   in 10m       0          202.2KiB   1
gc                      warm     0       -           -                                    -            13.0MiB    0          0
kube-scheduler          native   -       -           -                                    -            -          -          -
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := printControllers(&out, list, true, now); err != nil || !strings.Contains(out.String(), "controllers   system:serviceaccount:kube-system:deployment-controller") {
		t.Errorf("got %v\n%s", err, out.String())
	}
}

func TestWasmClient(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.EscapedPath() {
		case "GET /v1-dormouse/wasm/controllers":
			fmt.Fprint(w, `{"controllers":[{"name":"a","state":"asleep"}]}`)
		case "POST /v1-dormouse/wasm/controllers/a/wake":
			fmt.Fprint(w, `{"name":"a","state":"awake"}`)
		case "POST /v1-dormouse/wasm/controllers/b/evict":
			w.WriteHeader(http.StatusConflict)
			fmt.Fprint(w, `{"error":"b runs natively"}`)
		case "GET /v1-dormouse/wasm/controllers/..%2Fx":
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"kind":"Status","message":"forbidden: no"}`)
		default:
			http.Error(w, "no such thing", http.StatusNotFound)
		}
	}))
	defer srv.Close()
	kubeconfig := filepath.Join(t.TempDir(), "config")
	content := fmt.Sprintf(`{"kind":"Config","apiVersion":"v1","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, srv.URL)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"list", 0, "a      asleep", ""},
		{"list -o json", 0, `"state": "asleep"`, ""},
		{"wake a", 0, `"state": "awake"`, ""},
		{"evict b", 1, "", "dormouse: the server answers 409 Conflict: b runs natively\n"},
		{"inspect ../x", 1, "", "dormouse: the server answers 403 Forbidden: forbidden: no\n"},
		{"inspect c", 1, "", "dormouse: the server answers 404 Not Found: no such thing\n"},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"dormouse", "wasm", "--kubeconfig", kubeconfig}, strings.Fields(tc.args)...)
		if code := doMain(args, nil, &stdout, &stderr); code != tc.code || !strings.Contains(stdout.String(), tc.stdout) || stderr.String() != tc.stderr {
			t.Errorf("%s: %d\n%s\n%s", tc.args, code, stdout.String(), stderr.String())
		}
	}
}
