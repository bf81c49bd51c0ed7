package payload

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// temporary begins the names of directories that are being filled.
const temporary = ".unpacking-"

// lockName is the file that is locked while something is unpacked.
const lockName = ".lock"

// Locate returns the directory that holds the files of the program at path,
// unpacking them below dataDir if they are packed into it.
func Locate(program, dataDir string) (string, error) {
	a, err := Open(program)
	if errors.Is(err, ErrNoArchive) {
		return beside(program)
	}
	if err != nil {
		return "", err
	}
	defer a.Close()
	return a.Unpack(dataDir)
}

// beside looks for the files of the unpacked layout.
func beside(program string) (string, error) {
	program, err := filepath.EvalSymlinks(program)
	if err != nil {
		return "", err
	}
	bin := filepath.Dir(program)
	dirs := []string{bin, filepath.Join(filepath.Dir(bin), "lib", "dormouse")}
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, Runtime)); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("%s: %w, and %s is neither in %s nor in %s; install a complete release", program, ErrNoArchive, Runtime, dirs[0], dirs[1])
}

// Unpack makes sure that the files lie in <dataDir>/data/<digest>/ and returns
// that directory. It appears there whole or not at all. Of the directories of
// other versions the one that was used last is kept, for what still runs from
// it; older ones are removed. Safe to be called by several processes.
func (a *Archive) Unpack(dataDir string) (string, error) {
	parent := filepath.Join(dataDir, "data")
	missing := missingDirs(parent)
	dir, err := a.unpack(parent)
	if err != nil && len(missing) > 0 {
		// Nothing stays behind of what could not be done.
		_ = os.Remove(filepath.Join(parent, lockName))
		for _, d := range missing {
			_ = os.Remove(d)
		}
	}
	return dir, err
}

// missingDirs returns those of a directory and its parents that do not exist,
// the lowest first.
func missingDirs(dir string) []string {
	var missing []string
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			return missing
		}
		missing = append(missing, dir)
		dir = filepath.Dir(dir)
	}
}

func (a *Archive) unpack(parent string) (string, error) {
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(parent, lockName))
	if err != nil {
		return "", err
	}
	defer unlock()
	dir := filepath.Join(parent, a.digest)
	if err := a.check(dir); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			logrus.Warnf("unpacking the program's files again: %v", err)
		}
		if err := a.unpackTo(parent, dir); err != nil {
			return "", fmt.Errorf("unpacking the program's files into %s: %w", parent, err)
		}
	}
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return "", err
	}
	if err := a.prune(parent); err != nil {
		return "", fmt.Errorf("removing files of older versions from %s: %w", parent, err)
	}
	return dir, nil
}

// check compares dir with the archive: names, modes and content. Flash wears out, and what is damaged here is whole in
// the archive.
func (a *Archive) check(dir string) error {
	for _, f := range a.index.Files {
		if err := f.checkUnpacked(filepath.Join(dir, f.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (f file) checkUnpacked(name string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() != f.Size || st.Mode().Perm() != f.Mode {
		return fmt.Errorf("%s: mode %s and %d bytes, want %s and %d", name, st.Mode(), st.Size(), f.Mode, f.Size)
	}
	h := xxhash.New()
	if _, err := io.Copy(h, in); err != nil {
		return err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum != f.XXH64 {
		return fmt.Errorf("%s: its content has checksum %s, want %s", name, sum, f.XXH64)
	}
	return nil
}

func (a *Archive) unpackTo(parent, dir string) error {
	tmp, err := os.MkdirTemp(parent, temporary)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	for _, f := range a.index.Files {
		if err := a.write(f, filepath.Join(tmp, f.Name)); err != nil {
			return err
		}
	}
	if err := syncDir(tmp); err != nil {
		return err
	}
	// A directory of that name can only be damaged.
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return err
	}
	return syncDir(parent)
}

func (a *Archive) write(f file, name string) error {
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := a.extract(f, out); err != nil {
		return err
	}
	if err := out.Chmod(f.Mode); err != nil { // whatever the umask is
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return out.Close()
}

// prune removes what was left half done, and all other versions but the one
// that was used last.
func (a *Archive) prune(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	var others []fs.FileInfo
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) {
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return err
			}
		} else if info, err := e.Info(); err == nil && e.IsDir() && e.Name() != a.digest && isDigest(e.Name()) {
			others = append(others, info)
		}
	}
	slices.SortFunc(others, func(x, y fs.FileInfo) int {
		return cmp.Or(y.ModTime().Compare(x.ModTime()), cmp.Compare(x.Name(), y.Name()))
	})
	for _, o := range others[min(1, len(others)):] {
		if err := os.RemoveAll(filepath.Join(parent, o.Name())); err != nil {
			return err
		}
	}
	return nil
}

// isDigest recognises directories that Unpack made, so that nothing else is
// removed.
func isDigest(name string) bool {
	return len(name) == 32 && strings.Trim(name, "0123456789abcdef") == ""
}

func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
