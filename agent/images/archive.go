package images

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// suffixes are the file names that are taken for image archives.
var suffixes = []string{".tar", ".tar.gz", ".tgz", ".tar.zst"}

// isArchiveName reports whether a file name is that of an image archive.
// Hidden files are not: they are often being written.
func isArchiveName(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	for _, s := range suffixes {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

// errNotTar says that an archive is neither a tar file nor a compressed one.
var errNotTar = errors.New("not a tar file, nor one compressed with gzip or zstd")

const (
	tarMagicOffset = 257
	tarMagic       = "ustar" // POSIX and GNU alike
)

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// openTar returns the tar stream in r, decompressing it according to its first
// bytes, whatever its name says. Closing the result does not close r.
func openTar(r io.Reader) (io.ReadCloser, error) {
	outer := bufio.NewReaderSize(r, 1<<16)
	magic, err := outer.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var inner io.ReadCloser = io.NopCloser(outer)
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		if inner, err = gzip.NewReader(outer); err != nil {
			return nil, fmt.Errorf("decompress gzip: %w", err)
		}
	case bytes.Equal(magic, zstdMagic):
		// The window bounds what a hostile archive can make us allocate.
		d, err := zstd.NewReader(outer, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("decompress zstd: %w", err)
		}
		inner = d.IOReadCloser()
	}
	buffered := bufio.NewReader(inner)
	header, err := buffered.Peek(tarMagicOffset + len(tarMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		inner.Close()
		return nil, fmt.Errorf("read the first bytes: %w", err)
	}
	if len(header) < tarMagicOffset+len(tarMagic) || string(header[tarMagicOffset:]) != tarMagic {
		inner.Close()
		return nil, errNotTar
	}
	return readCloser{buffered, inner}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}
