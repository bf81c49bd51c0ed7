package main

import (
	"bytes"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
	"github.com/dormouse-k8s/dormouse/wasmplane/snapshot"
)

// newSnapshots makes a store with some snapshots in a data directory.
func newSnapshots(t *testing.T, dir string) (*snapshot.Store, string) {
	t.Helper()
	file := paths.Data(dir).WasmSnapshots()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := snapshot.Open(file, snapshot.Identity{Module: "m", Datastore: "d"}, runtime.PageSize, func(why string) { t.Error(why) })
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		var pages iter.Seq2[int, []byte] = func(yield func(int, []byte) bool) {
			_ = yield(1, bytes.Repeat([]byte(name), runtime.PageSize))
		}
		if _, err := s.Save(name, snapshot.Head{Memory: 1 << 20}, snapshot.Clock{}, pages); err != nil {
			t.Fatal(err)
		}
	}
	return s, file
}

func TestWasmCheck(t *testing.T) {
	run := func(args ...string) (code int, stdout, stderr string) {
		var out, errs bytes.Buffer
		code = doMain(append([]string{"dormouse", "wasm", "check"}, args...), nil, &out, &errs)
		return code, out.String(), errs.String()
	}
	expect := func(args []string, code int, stdout, stderr string) {
		t.Helper()
		if c, out, errs := run(args...); c != code || !strings.HasSuffix(out, stdout) || stdout == "" && out != "" || errs != stderr {
			t.Errorf("%q: %d, want %d\n%s\nwant %s\n%s\nwant %s", args, c, code, out, stdout, errs, stderr)
		}
	}
	dir := t.TempDir()
	file := paths.Data(dir).WasmSnapshots()
	expect([]string{file}, 1, "", fmt.Sprintf("dormouse: there is no snapshot store at %s; the first server in Wasm mode makes one\n", file))
	s, _ := newSnapshots(t, dir)
	expect([]string{file, "--repair"}, 1, "", fmt.Sprintf("dormouse: %s is in use; stop the server first\n", file))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, out, _ := run("--data-dir", dir)
	if want := "NAME   SIZE     STATE\na      "; !strings.HasPrefix(out, want) {
		t.Errorf("got %s, want %s", out, want)
	}
	expect([]string{"--data-dir", dir}, 0, "ok\n3 snapshots, none damaged\n", "")

	db, err := bbolt.Open(file, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("guests")).Bucket([]byte("b")).Put([]byte("head"), []byte("x"))
	})
	if err != nil || db.Close() != nil {
		t.Fatal(err)
	}
	for range 2 { // it changes nothing
		expect([]string{file}, 1, "ok\n", "dormouse: 1 of 3 snapshots are damaged; a server starts their controllers cold, --repair drops them now\n")
	}
	if _, out, _ := run(file); !strings.Contains(out, "damaged snapshot: wrong hash of the head\nc ") {
		t.Errorf("got %s", out)
	}
	expect([]string{file, "--repair"}, 0, "1 of 3 snapshots were damaged and are dropped; their controllers start cold\n", "")
	expect([]string{file}, 0, "2 snapshots, none damaged\n", "")

	if err := os.Truncate(file, 10000); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := run(file); code != 1 || out != "" || !strings.Contains(errs, "cannot be used: damaged snapshot: 10000 bytes long") || strings.Count(errs, "\n") != 1 {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	if code, out, errs := run(file, "--repair"); code != 0 || !strings.Contains(out, "was put aside; every controller starts cold\n") || errs != "" {
		t.Errorf("%d\n%s\n%s", code, out, errs)
	}
	if _, err := os.Stat(file + ".damaged"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(file, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect([]string{file, "--repair"}, 1, "", fmt.Sprintf("dormouse: %s is no snapshot store\n", file))
	expect([]string{file, "another"}, 1, "", "dormouse: unexpected argument \"another\"; see \"dormouse wasm check --help\"\n")
}
