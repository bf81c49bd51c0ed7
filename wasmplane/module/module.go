// Package module reads the file that holds the compiled guest program. The
// packages below it make that file; they are needed at build time only.
//
// # File
//
//	ELF image as serialised by wasmtime, without its address map and symbols
//	metadata: Info as JSON
//	length of the metadata, 4 bytes, little endian
//	magic, 8 bytes: "DORMWASM"
//
// The image comes first and at offset 0, so that wasmtime can map the file as
// it is; it does not look beyond the sections that the image names.
package module

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/bytecodealliance/wasmtime-go/v39"
	"github.com/cespare/xxhash/v2"

	"github.com/dormouse-k8s/dormouse/wasmplane/abi"
)

const (
	// FormatVersion is the version of the file's layout.
	FormatVersion = 2

	// WasmtimeVersion is the version of wasmtime in this program, as in go.mod.
	WasmtimeVersion = "v39.0.1"

	magic   = "DORMWASM"
	tail    = 4 + len(magic)
	maxInfo = 64 << 10
)

// Info describes a module file.
type Info struct {
	// Format is FormatVersion, ABI is abi.Version.
	Format int `json:"format"`
	ABI    int `json:"abi"`
	// Wasmtime is the version of wasmtime that compiled the module; no other can
	// load it.
	Wasmtime string `json:"wasmtime"`
	// Target is the platform of the machine code.
	Target string `json:"target"`
	// Digest identifies the module: the SHA-256 of the WebAssembly module with
	// its base image, in hexadecimal. Snapshots fit only the module they were
	// taken from.
	Digest string `json:"digest"`
	// Globals are the names under which the mutable globals are exported.
	Globals []string `json:"globals"`
	// Pages is the size of the base image, in WebAssembly pages of 64 KiB.
	Pages uint64 `json:"pages"`
	// Size and Checksum (XXH64, hexadecimal) are those of the image.
	Size     int64  `json:"size"`
	Checksum string `json:"checksum"`
}

// Module is a loaded module.
type Module struct {
	Info
	Engine   *wasmtime.Engine
	Wasmtime *wasmtime.Module
	file     *os.File
}

// ErrInvalid is what errors about a file that is damaged, cut off, or no module
// at all wrap; ErrVersion those about a file for another version or platform.
var (
	ErrInvalid = errors.New("not a valid module file")
	ErrVersion = errors.New("module file of another version")
)

// EngineConfig is the configuration of the engine for modules of this version.
// A compiled module loads only into an engine that is configured as the one that
// compiled it.
func EngineConfig() (*wasmtime.Config, error) {
	target, err := Target()
	if err != nil {
		return nil, err
	}
	c := wasmtime.NewConfig()
	// Naming the target keeps features of the building machine's processor out.
	if err := c.SetTarget(target); err != nil {
		c.Close()
		return nil, fmt.Errorf("setting the target %s: %w", target, err)
	}
	c.SetEpochInterruption(true)
	c.SetCraneliftOptLevel(wasmtime.OptLevelSpeedAndSize)
	c.SetNativeUnwindInfo(false) // needed by debuggers only
	return c, nil
}

// Target is the platform that modules are compiled for, the baseline of this
// architecture.
func Target() (string, error) {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64-unknown-linux-gnu", nil
	case "arm64":
		return "aarch64-unknown-linux-gnu", nil
	}
	return "", fmt.Errorf("no support for WebAssembly on %s", runtime.GOARCH)
}

// Load maps the module at path, after it has compared the file with its checksum:
// it holds machine code, and one wrong bit can be anything.
func Load(path string) (*Module, error) {
	info, err := Verify(path)
	if err != nil {
		return nil, err
	}
	config, err := EngineConfig()
	if err != nil {
		return nil, err
	}
	m := &Module{Info: *info}
	if m.file, err = os.Open(path); err != nil {
		return nil, err
	}
	m.Engine = wasmtime.NewEngineWithConfig(config)
	if m.Wasmtime, err = m.Map(); err != nil {
		m.file.Close()
		m.Engine.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// Map maps the module once more, whatever has become of its path. The caller closes
// what it returns.
func (m *Module) Map() (*wasmtime.Module, error) {
	w, err := wasmtime.NewModuleDeserializeFile(m.Engine, fmt.Sprintf("/proc/self/fd/%d", m.file.Fd()))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, cause(err))
	}
	return w, nil
}

// cause is the innermost cause in an error of wasmtime, which has many lines: what
// failed, a numbered list of causes, a stack.
func cause(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n\nStack backtrace:")
	lines := strings.Split(strings.TrimSpace(text), "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	return strings.TrimLeft(last, "0123456789: ")
}

// Close releases the module. What was made from it must have been closed before.
func (m *Module) Close() {
	m.Wasmtime.Close()
	m.Engine.Close()
	m.file.Close()
}

// ReadInfo reads the description of the module at path and checks that this
// program can load it.
func ReadInfo(path string) (*Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	info, err := readInfo(f, st.Size())
	if err == nil {
		err = info.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return info, nil
}

// Verify reads the whole file, compares its checksum and returns its description.
func Verify(path string) (*Info, error) {
	info, err := ReadInfo(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := xxhash.New()
	if _, err := io.CopyN(h, f, info.Size); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if hex.EncodeToString(h.Sum(nil)) != info.Checksum {
		return nil, fmt.Errorf("%s: %w: wrong checksum", path, ErrInvalid)
	}
	return info, nil
}

// readInfo reads the end of a module file of that size. The result is consistent
// with the size, but may be of another version.
func readInfo(r io.ReaderAt, size int64) (*Info, error) {
	if size < int64(tail) {
		return nil, fmt.Errorf("%w: only %d bytes", ErrInvalid, size)
	}
	end := make([]byte, tail)
	if _, err := r.ReadAt(end, size-int64(tail)); err != nil {
		return nil, err
	}
	if string(end[4:]) != magic {
		return nil, fmt.Errorf("%w: its end is missing", ErrInvalid)
	}
	n := int64(binary.LittleEndian.Uint32(end))
	if n > maxInfo || n > size-int64(tail) {
		return nil, fmt.Errorf("%w: %d bytes of metadata", ErrInvalid, n)
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, size-int64(tail)-n); err != nil {
		return nil, err
	}
	var info Info
	if err := json.Unmarshal(b, &info); err != nil {
		return nil, fmt.Errorf("%w: reading its metadata: %w", ErrInvalid, err)
	}
	if info.Format == FormatVersion && info.Size != size-int64(tail)-n {
		return nil, fmt.Errorf("%w: %d bytes of code, want %d", ErrInvalid, size-int64(tail)-n, info.Size)
	}
	return &info, nil
}

// check compares the description with this program.
func (i *Info) check() error {
	target, err := Target()
	if err != nil {
		return err
	}
	for _, v := range []struct {
		what       string
		have, want any
	}{
		{"format", i.Format, FormatVersion},
		{"wire format", i.ABI, abi.Version},
		{"wasmtime", i.Wasmtime, WasmtimeVersion},
		{"platform", i.Target, target},
	} {
		if v.have != v.want {
			return fmt.Errorf("%w: it is for %s %v, this program needs %v; use the module of the same release", ErrVersion, v.what, v.have, v.want)
		}
	}
	return nil
}

// Encode returns a module file of image, filling in the fields of info that
// follow from it and from this program.
func Encode(image []byte, info Info) ([]byte, error) {
	target, err := Target()
	if err != nil {
		return nil, err
	}
	sum := xxhash.Sum64(image)
	info.Format = FormatVersion
	info.ABI = abi.Version
	info.Wasmtime = WasmtimeVersion
	info.Target = target
	info.Size = int64(len(image))
	info.Checksum = fmt.Sprintf("%016x", sum)
	meta, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	if len(meta) > maxInfo {
		return nil, fmt.Errorf("%d bytes of metadata, at most %d are allowed", len(meta), maxInfo)
	}
	b := bytes.NewBuffer(make([]byte, 0, len(image)+len(meta)+tail))
	b.Write(image)
	b.Write(meta)
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(meta))))
	b.WriteString(magic)
	return b.Bytes(), nil
}
