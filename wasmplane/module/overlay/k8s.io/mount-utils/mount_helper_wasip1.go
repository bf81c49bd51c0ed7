package mount

import (
	"errors"
	"io/fs"
	"os"
)

// IsCorruptedMnt reports whether err is about a corrupted mount point, which a
// guest has not.
func IsCorruptedMnt(error) bool { return false }

// PathExists reports whether the path exists.
func PathExists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
