package paths

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/pkg/atomicfile"
)

// Write puts data into the file name with the given mode, so that at any moment, also after a power
// cut, the file is either as it was or complete. A file that already has this content is not written
// again, only its mode is put right: flash wears out.
func Write(name string, data []byte, mode fs.FileMode) (err error) {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		if err := os.Chmod(name, mode); err != nil {
			return fmt.Errorf("setting the mode of %s: %w", name, err)
		}
		return nil
	}
	f, err := atomicfile.New(name, mode)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("writing %s: %w", name, errors.Join(err, f.Cancel()))
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return syncDir(filepath.Dir(name))
}

// MakeDir creates the directory name, and its parents with ModePublicDir, and sets its mode.
func MakeDir(name string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(name), ModePublicDir); err != nil {
		return fmt.Errorf("creating %s: %w", filepath.Dir(name), err)
	}
	if err := os.Mkdir(name, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("creating %s: %w", name, err)
	}
	// Neither the umask nor an older version decides.
	if err := os.Chmod(name, mode); err != nil {
		return fmt.Errorf("setting the mode of %s: %w", name, err)
	}
	return nil
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	return nil
}
