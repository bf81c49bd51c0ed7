// Package payload finds the files that belong to the program but cannot be part
// of its code: the second executable, the compiled controllers, the image of the
// pause container.
//
// There are two layouts. In a single-file distribution the files are packed
// behind the program's own ELF image and unpacked once into the data directory.
// In an unpacked one, as on appliances whose data directory may hold no
// executables, they lie beside the program or in ../lib/dormouse, and nothing is
// unpacked.
//
// # Archive
//
// Behind the ELF image follow
//
//	the files, each compressed with zstd
//	index: Index as JSON
//	offset of the index in the file, 8 bytes, little endian
//	length of the index, 4 bytes, little endian
//	magic, 8 bytes: "DORMPACK"
package payload

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
)

// Names of the files.
const (
	Runtime     = "dormouse-rt"       // shim, runc, CNI plugins
	Controllers = "controllers.cwasm" // the control plane's controllers, compiled
	PauseImage  = "pause.tar.gz"      // image archive of the pause container
)

const (
	formatVersion = 2
	magic         = "DORMPACK"
	trailerSize   = 8 + 4 + len(magic)
	maxIndex      = 1 << 20
	maxFile       = 4 << 30

	// MaxWindow is how far back compressed files may refer, in bytes: a power of two.
	// To unpack takes as much memory, on the device.
	MaxWindow = 1 << 25
)

// index lists what an archive holds.
type index struct {
	Format int    `json:"format"`
	Files  []file `json:"files"`
}

type file struct {
	Name   string      `json:"name"`
	Mode   fs.FileMode `json:"mode"`
	Offset int64       `json:"offset"` // of the compressed bytes, from the start of the program
	Packed int64       `json:"packed"` // length of the compressed bytes
	Size   int64       `json:"size"`
	SHA256 string      `json:"sha256"` // hexadecimal
	XXH64  string      `json:"xxh64"`  // hexadecimal; quick enough to be compared at each start, also without SHA instructions
}

// Archive is an open archive. Its methods are safe for concurrent use.
type Archive struct {
	f      *os.File
	index  index
	digest string
}

// ErrNoArchive means that there is nothing behind the program; ErrInvalid that
// what is there is damaged or cut off.
var (
	ErrNoArchive = errors.New("no files are packed into the program")
	ErrInvalid   = errors.New("the files packed into the program are damaged; install it again")
)

// Open reads the index of the archive behind the program at path.
func Open(path string) (*Archive, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	a := &Archive{f: f}
	if a.index, a.digest, err = readIndex(f, st.Size()); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return a, nil
}

// Close closes the file.
func (a *Archive) Close() error { return a.f.Close() }

// Digest identifies the content of the archive.
func (a *Archive) Digest() string { return a.digest }

// Sizes are the lengths of a file, in bytes: packed, as in the program, and unpacked. ok is false if the archive has
// no such file.
func (a *Archive) Sizes(name string) (packed, unpacked int64, ok bool) {
	for _, f := range a.index.Files {
		if f.Name == name {
			return f.Packed, f.Size, true
		}
	}
	return 0, 0, false
}

// readIndex reads and checks the end of a file of that size.
func readIndex(r io.ReaderAt, size int64) (index, string, error) {
	var x index
	if size < int64(trailerSize) {
		return x, "", ErrNoArchive
	}
	t := make([]byte, trailerSize)
	if _, err := r.ReadAt(t, size-int64(trailerSize)); err != nil {
		return x, "", err
	}
	if string(t[12:]) != magic {
		return x, "", ErrNoArchive
	}
	offset, length := int64(binary.LittleEndian.Uint64(t)), int64(binary.LittleEndian.Uint32(t[8:]))
	if length > maxIndex || offset < 0 || offset != size-int64(trailerSize)-length {
		return x, "", fmt.Errorf("%w (index of %d bytes at %d)", ErrInvalid, length, offset)
	}
	b := make([]byte, length)
	if _, err := r.ReadAt(b, offset); err != nil {
		return x, "", err
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return x, "", fmt.Errorf("%w (index: %w)", ErrInvalid, err)
	}
	if x.Format != formatVersion {
		return x, "", fmt.Errorf("%w (format %d, want %d)", ErrInvalid, x.Format, formatVersion)
	}
	for _, f := range x.Files {
		if err := f.check(offset); err != nil {
			return x, "", fmt.Errorf("%w (%q: %w)", ErrInvalid, f.Name, err)
		}
	}
	sum := sha256.Sum256(b)
	return x, hex.EncodeToString(sum[:16]), nil
}

// check looks at what is written in an index that begins at end.
func (f file) check(end int64) error {
	switch {
	case f.Name == "" || f.Name[0] == '.' || filepath.Base(f.Name) != f.Name:
		return errors.New("not a plain name")
	case f.Mode&^fs.ModePerm != 0:
		return fmt.Errorf("mode %s", f.Mode)
	case f.Offset < 0 || f.Packed < 0 || f.Offset > end || f.Packed > end-f.Offset:
		return errors.New("outside of the archive")
	case f.Size < 0 || f.Size > maxFile:
		return fmt.Errorf("size %d", f.Size)
	}
	return nil
}

// extract writes the content of f to w and compares its checksum.
func (a *Archive) extract(f file, w io.Writer) error {
	d, err := zstd.NewReader(io.NewSectionReader(a.f, f.Offset, f.Packed), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(maxFile), zstd.WithDecoderMaxWindow(MaxWindow), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer d.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(d, f.Size+1))
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return err // of w, or of reading the program
	}
	if err != nil || n != f.Size || hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%s: %w", f.Name, ErrInvalid)
	}
	return nil
}

// Compressor returns the content of a file, compressed with zstd.
type Compressor func(file string) (io.ReadCloser, error)

// Append copies program to out and packs files behind it. Packing what is packed
// already replaces the files.
func Append(out io.Writer, program string, files []string, compress Compressor) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	switch x, _, err := readIndex(bytes.NewReader(b), int64(len(b))); {
	case err == nil:
		for _, f := range x.Files {
			b = b[:min(int64(len(b)), f.Offset)]
		}
	case !errors.Is(err, ErrNoArchive):
		return fmt.Errorf("%s: %w", program, err)
	}
	w := &counter{w: out}
	if _, err := w.Write(b); err != nil {
		return err
	}
	x := index{Format: formatVersion}
	for _, name := range files {
		f, err := pack(w, name, compress)
		if err != nil {
			return fmt.Errorf("packing %s: %w", name, err)
		}
		x.Files = append(x.Files, f)
	}
	encoded, err := json.Marshal(x)
	if err != nil {
		return err
	}
	for _, f := range x.Files {
		if err := f.check(w.n); err != nil {
			return fmt.Errorf("packing %s: %w", f.Name, err)
		}
	}
	trailer := binary.LittleEndian.AppendUint64(encoded, uint64(w.n))
	trailer = binary.LittleEndian.AppendUint32(trailer, uint32(len(encoded)))
	_, err = w.Write(append(trailer, magic...))
	return err
}

func pack(w *counter, name string, compress Compressor) (file, error) {
	in, err := os.Open(name)
	if err != nil {
		return file{}, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return file{}, err
	}
	f := file{Name: filepath.Base(name), Mode: 0o644, Offset: w.n}
	if st.Mode()&0o100 != 0 {
		f.Mode = 0o755
	}
	h, quick := sha256.New(), xxhash.New()
	if f.Size, err = io.Copy(io.MultiWriter(h, quick), in); err != nil {
		return file{}, err
	}
	compressed, err := compress(name)
	if err != nil {
		return file{}, err
	}
	defer compressed.Close()
	if f.Packed, err = io.Copy(w, compressed); err != nil {
		return file{}, err
	}
	f.SHA256, f.XXH64 = hex.EncodeToString(h.Sum(nil)), hex.EncodeToString(quick.Sum(nil))
	return f, nil
}

// counter knows how much was written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
