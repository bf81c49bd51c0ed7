package datastore

import (
	"bytes"
	"context"
	"database/sql"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

func TestMain(m *testing.M) {
	logrus.SetOutput(io.Discard) // kine reports each step
	os.Exit(m.Run())
}

func open(t *testing.T, d paths.Data) *Store {
	t.Helper()
	s, err := Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs s, calls fn with a client, and stops s.
func serve(t *testing.T, s *Store, fn func(*clientv3.Client)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Serve(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{Endpoint(s.data)}})
	if err != nil {
		t.Fatal(err)
	}
	fn(client)
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// create writes a key the way the API server does.
func create(t *testing.T, c *clientv3.Client, key string) int64 {
	t.Helper()
	r, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, "value")).Commit()
	if err != nil || !r.Succeeded {
		t.Fatalf("creating %s: %v, %v", key, r, err)
	}
	return r.Header.Revision
}

func TestIdentityThroughRestarts(t *testing.T) {
	d := paths.Data(t.TempDir())
	first := open(t, d)
	if id := first.Identity; id.ID == "" || id.Previous != "" || id.Generation == "" || id.Revision != 0 {
		t.Fatalf("new database: %+v", id)
	}
	var written int64
	serve(t, first, func(c *clientv3.Client) {
		create(t, c, "/registry/a")
		written = create(t, c, "/registry/b")
	})
	second := open(t, d)
	if id := second.Identity; id.ID != first.Identity.ID || id.Previous != first.Identity.Generation || id.Generation == id.Previous || id.Revision != written {
		t.Fatalf("second start: %+v after %+v, revision %d", id, first.Identity, written)
	}
	serve(t, second, func(c *clientv3.Client) {
		if r, err := c.Get(t.Context(), "/registry/b"); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "value" {
			t.Errorf("got %v, %v", r, err)
		}
	})
	for range 2 * generationsKept {
		open(t, d)
	}
}

func TestRestoredCopyIsRecognised(t *testing.T) {
	d := paths.Data(t.TempDir())
	a := open(t, d)
	serve(t, a, func(c *clientv3.Client) { create(t, c, "/registry/a") })
	backup, err := os.ReadFile(d.Database())
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, d)
	serve(t, b, func(c *clientv3.Client) { create(t, c, "/registry/b") })
	if err := os.WriteFile(d.Database(), backup, 0o600); err != nil {
		t.Fatal(err)
	}
	c := open(t, d)
	if c.Identity.ID != a.Identity.ID || c.Identity.Previous != a.Identity.Generation {
		t.Errorf("after a restore: %+v, want to follow %+v and not %+v", c.Identity, a.Identity, b.Identity)
	}
}

func TestModes(t *testing.T) {
	d := paths.Data(t.TempDir())
	serve(t, open(t, d), func(c *clientv3.Client) {
		create(t, c, "/registry/a")
		entries, err := os.ReadDir(filepath.Dir(d.Database()))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if st, err := e.Info(); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, %v", e.Name(), st.Mode(), err)
			}
		}
	})
	if st, err := os.Stat(filepath.Dir(d.Database())); err != nil || st.Mode().Perm() != fs.FileMode(0o700) {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestDamagedDatabaseIsRefusedAndLeftAlone(t *testing.T) {
	d := paths.Data(t.TempDir())
	if err := paths.MakeDir(filepath.Dir(d.Database()), 0o700); err != nil {
		t.Fatal(err)
	}
	garbage := bytes.Repeat([]byte("not a database\n"), 1000)
	if err := os.WriteFile(d.Database(), garbage, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), d); err == nil || !strings.Contains(err.Error(), "restore it from a backup") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(d.Database()); err != nil || !bytes.Equal(b, garbage) {
		t.Errorf("the file was changed (%v)", err)
	}
}

// TestFailedWrites: a write that the database refuses, as it does when the disk is full, is an error and changes
// nothing, of present keys as of new ones and of those that were deleted.
func TestFailedWrites(t *testing.T) {
	s := open(t, paths.Data(t.TempDir()))
	serve(t, s, func(c *clientv3.Client) {
		kept, gone := create(t, c, "/registry/kept"), create(t, c, "/registry/gone")
		change := func(key string, revision int64, op clientv3.Op) (*clientv3.TxnResponse, error) {
			return c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).Then(op).Else(clientv3.OpGet(key)).Commit()
		}
		update := func(key string, revision int64) (*clientv3.TxnResponse, error) {
			return change(key, revision, clientv3.OpPut(key, "changed"))
		}
		remove := func(key string, revision int64) (*clientv3.TxnResponse, error) {
			return change(key, revision, clientv3.OpDelete(key))
		}
		if r, err := remove("/registry/gone", gone); err != nil || !r.Succeeded {
			t.Fatalf("deleting: %v, %v", r, err)
		}

		db, err := sql.Open("sqlite3", s.dsn())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		exec := func(statement string) {
			t.Helper()
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		}
		exec(`CREATE TRIGGER full BEFORE INSERT ON kine BEGIN SELECT RAISE(ABORT, 'no room'); END`)
		for what, do := range map[string]func() (*clientv3.TxnResponse, error){
			"create":       func() (*clientv3.TxnResponse, error) { return update("/registry/new", 0) },
			"create again": func() (*clientv3.TxnResponse, error) { return update("/registry/gone", 0) },
			"update":       func() (*clientv3.TxnResponse, error) { return update("/registry/kept", kept) },
			"delete":       func() (*clientv3.TxnResponse, error) { return remove("/registry/kept", kept) },
		} {
			if r, err := do(); err == nil || !strings.Contains(err.Error(), "writing to the database: no room") {
				t.Errorf("%s: %v, %v", what, r, err)
			}
		}
		exec(`DROP TRIGGER full`)

		r, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range r.Kvs {
			if key := string(kv.Key); key != "/registry/health" && (key != "/registry/kept" || kv.ModRevision != kept) {
				t.Errorf("there is %s of revision %d", key, kv.ModRevision)
			}
		}
		if r, err := update("/registry/kept", kept); err != nil || !r.Succeeded {
			t.Errorf("update with room again: %v, %v", r, err)
		}
		// A conflict is none of these failures.
		if r, err := update("/registry/kept", kept); err != nil || r.Succeeded || len(r.Responses[0].GetResponseRange().Kvs) != 1 {
			t.Errorf("update of what has changed: %v, %v", r, err)
		}
		create(t, c, "/registry/gone")
	})
}

// BenchmarkWrite is what a commit costs on the disk under TMPDIR.
func BenchmarkWrite(b *testing.B) {
	s, err := Open(b.Context(), paths.Data(b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Serve(ctx, func() { close(ready) }) }()
	<-ready
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{Endpoint(s.data)}})
	if err != nil {
		b.Fatal(err)
	}
	value := strings.Repeat("x", 1000)
	for i := 0; b.Loop(); i++ {
		key := "/registry/" + random()
		if _, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", 0)).Then(clientv3.OpPut(key, value)).Commit(); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
