package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// patience is far longer than anything here takes.
const patience = 20 * time.Second

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func TestFiles(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "manifests")
	d := openDirectory(dir)
	defer d.close()
	if files, err := d.files(); err != nil || files != nil {
		t.Fatalf("a directory that does not exist holds %q, %v", files, err)
	}
	for _, name := range []string{
		"b.yaml", "a.yml", "c.json", "UPPER.YAML", "text.txt", "yaml", ".hidden.yaml", "swap.yaml~",
		"skipped.yaml", "skipped.yaml.skip", "sub/d.yaml", "sub/skipped.yaml", "sub/deep/e.yaml", "sub/deep/f.yml", "sub/deep/f.yml.skip", "lonely.yaml.skip",
	} {
		write(t, filepath.Join(dir, name), "")
	}
	write(t, filepath.Join(parent, "elsewhere/linked.yaml"), "")
	write(t, filepath.Join(parent, "elsewhere/unseen.txt"), "")
	symlink(t, filepath.Join(parent, "elsewhere"), filepath.Join(dir, "top"))
	symlink(t, filepath.Join(parent, "elsewhere"), filepath.Join(dir, "sub/below"))
	symlink(t, filepath.Join(parent, "elsewhere/linked.yaml"), filepath.Join(dir, "sub/g.yaml"))
	symlink(t, "nowhere", filepath.Join(dir, "dangling.yaml"))
	if err := os.Mkdir(filepath.Join(dir, "dir.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}

	files, err := d.files()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		rel, err := filepath.Rel(dir, f)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rel)
	}
	// As in k3s, a link to a directory counts at the top alone, so that no link leads into a loop.
	want := []string{"UPPER.YAML", "a.yml", "b.yaml", "c.json", "sub/d.yaml", "sub/deep/e.yaml", "sub/g.yaml", "sub/skipped.yaml", "top/linked.yaml"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestDirectorySaysWhenItChanges(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "manifests")
	d := openDirectory(dir)
	defer d.close()
	changes := func(what string, change func()) {
		t.Helper()
		d.settle(t.Context())
		if _, err := d.files(); err != nil {
			t.Fatal(err)
		}
		change()
		select {
		case <-d.changed:
		case <-time.After(patience):
			t.Fatalf("%s goes unnoticed", what)
		}
	}
	mustRemove := func(path string) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	changes("the directory", func() {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	})
	file := filepath.Join(dir, "a.yaml")
	changes("a new file", func() { write(t, file, "1") })
	changes("new content", func() { write(t, file, "2") })
	changes("a new directory", func() { write(t, filepath.Join(dir, "sub/b.yaml"), "1") })
	changes("new content in a new directory", func() { write(t, filepath.Join(dir, "sub/b.yaml"), "2") })
	changes("a removed file", func() { mustRemove(file) })
	changes("the end of the directory", func() { mustRemove(dir) })
	changes("its return", func() { write(t, file, "1") })
	changes("a file after its return", func() { write(t, file, "2") })
}

// TestNeighboursAreNoChange: other files of the server, beside the directory, wake nobody.
func TestNeighboursAreNoChange(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "manifests")
	d := openDirectory(dir)
	defer d.close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	<-d.changed
	if _, err := d.files(); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(parent, "token"), "x")
	if err := d.watcher.Close(); err != nil { // what has happened has been seen by then
		t.Fatal(err)
	}
	select {
	case <-d.changed:
		t.Error("a neighbour counts as a change")
	default:
	}
}
