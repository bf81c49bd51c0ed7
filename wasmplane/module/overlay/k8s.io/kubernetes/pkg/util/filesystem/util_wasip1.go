package filesystem

import (
	"errors"
	"os"
	"path/filepath"
)

// IsUnixDomainSocket is never asked in a guest.
func IsUnixDomainSocket(string) (bool, error) { return false, errors.ErrUnsupported }

// Chmod is os.Chmod.
func Chmod(name string, mode os.FileMode) error { return os.Chmod(name, mode) }

// MkdirAll is os.MkdirAll.
func MkdirAll(path string, perm os.FileMode) error { return os.MkdirAll(path, perm) }

// IsAbs is filepath.IsAbs.
func IsAbs(path string) bool { return filepath.IsAbs(path) }
