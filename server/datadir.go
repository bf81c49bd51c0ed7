package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	utilversion "k8s.io/apimachinery/pkg/util/version"

	"github.com/dormouse-k8s/dormouse/internal/paths"
	"github.com/dormouse-k8s/dormouse/internal/version"
)

// dataFormat is the format of the data directory. The file server/version holds, since format 1,
//
//	format 1
//	version v1.37.2+dormouse1
//
// where the version is the newest Dormouse that has used the directory.
const dataFormat = "1"

// ErrDataDir is wrapped by errors about a data directory this Dormouse must not use.
var ErrDataDir = errors.New("unusable data directory")

// checkVersion says whether a directory that another version has written may be used. It writes nothing.
func checkVersion(data paths.Data) error {
	b, err := os.ReadFile(data.Version())
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(data.Database()); err == nil {
			return fmt.Errorf("%w: %s holds a database but no file %s, so it was not made by Dormouse or is damaged; choose another --data-dir or restore a backup", ErrDataDir, data, data.Version())
		}
		return nil
	} else if err != nil {
		return fmt.Errorf("reading the data directory's version: %w", err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		fields[key] = value
	}
	if f := fields["format"]; f != dataFormat {
		return fmt.Errorf("%w: %s has format %q, this is Dormouse %s, which knows format %q; run the version that wrote it or restore a backup", ErrDataDir, data, f, version.Get(), dataFormat)
	}
	wrote, err := utilversion.ParseSemantic(fields["version"])
	if err != nil {
		return fmt.Errorf("%w: %s is damaged: %w", ErrDataDir, data.Version(), err)
	}
	own, err := utilversion.ParseSemantic(version.Get())
	if err != nil {
		return fmt.Errorf("parsing our own version: %w", err)
	}
	if wrote.Major() > own.Major() || wrote.Major() == own.Major() && wrote.Minor() > own.Minor() {
		return fmt.Errorf("%w: %s was written by Dormouse %s, this is %s and going back a minor version is not possible; run that version or restore a backup", ErrDataDir, data, fields["version"], version.Get())
	}
	return nil
}

func writeVersion(data paths.Data) error {
	return paths.Write(data.Version(), []byte("format "+dataFormat+"\nversion "+version.Get()+"\n"), paths.ModePrivateFile)
}

// lock keeps every other server off the directory until the returned file is closed, or this process ends.
func lock(data paths.Data) (*os.File, error) {
	f, err := os.OpenFile(data.Lock(), os.O_RDWR|os.O_CREATE, paths.ModePrivateFile)
	if err != nil {
		return nil, fmt.Errorf("locking the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: another server runs on %s (%s is locked: %w)", ErrDataDir, data, data.Lock(), err)
	}
	return f, nil
}
