package bake

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// dropped are the sections of a compiled module that nobody reads at run time.
// The address map gives the offsets in backtraces of traps; a guest's own stack
// dumps come from its Go runtime.
var dropped = []string{".wasmtime.addrmap", ".wasmtime.exceptions", ".symtab", ".strtab"}

const (
	elfHeaderSize     = 64
	sectionHeaderSize = 64
	maxAlign          = 64 << 10
)

// Strip returns a compiled module, an ELF file of 64 bits and little endian,
// without the sections that are not needed. Alignments are kept.
func Strip(image []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("reading the compiled module: %w", err)
	}
	var h elf.Header64
	if f.Class != elf.ELFCLASS64 || f.ByteOrder != binary.LittleEndian || len(image) < elfHeaderSize {
		return nil, errors.New("the compiled module is not a little-endian ELF file of 64 bits")
	}
	if err := binary.Read(bytes.NewReader(image), binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	n := len(f.Sections)
	if h.Phnum != 0 || h.Shentsize != sectionHeaderSize || int(h.Shstrndx) >= n {
		return nil, errors.New("the compiled module is not laid out as wasmtime does it")
	}

	// index maps old section numbers to new ones.
	index := make([]uint32, len(f.Sections))
	var kept []int
	for i, s := range f.Sections {
		if !slices.Contains(dropped, s.Name) {
			index[i] = uint32(len(kept))
			kept = append(kept, i)
		}
	}
	out := make([]byte, elfHeaderSize, len(image))
	headers := make([]byte, 0, sectionHeaderSize*len(kept))
	for _, i := range kept {
		s := f.Sections[i]
		if int(s.Link) >= n || s.Addralign > maxAlign {
			return nil, fmt.Errorf("section %s has an invalid header", s.Name)
		}
		if s.Link != 0 && index[s.Link] == 0 {
			return nil, fmt.Errorf("section %s needs section %s, which would be dropped", s.Name, f.Sections[s.Link].Name)
		}
		header := elf.Section64{
			Type: uint32(s.Type), Flags: uint64(s.Flags), Addr: s.Addr, Size: s.FileSize,
			Link: index[s.Link], Info: s.Info, Addralign: s.Addralign, Entsize: s.Entsize,
		}
		// The section's name is an offset that debug/elf does not keep.
		at := h.Shoff + uint64(i)*uint64(h.Shentsize)
		header.Name = binary.LittleEndian.Uint32(image[at:])
		if s.Type != elf.SHT_NULL && s.Type != elf.SHT_NOBITS {
			size := uint64(len(image))
			if s.Offset > size || s.FileSize > size-s.Offset {
				return nil, fmt.Errorf("section %s lies outside of the file", s.Name)
			}
			out = align(out, s.Addralign)
			if uint64(len(out))+s.FileSize > 2*size+maxAlign {
				return nil, errors.New("sections overlap")
			}
			header.Off = uint64(len(out))
			out = append(out, image[s.Offset:s.Offset+s.FileSize]...)
		}
		headers, err = binary.Append(headers, binary.LittleEndian, header)
		if err != nil {
			return nil, err
		}
	}
	out = align(out, 8)
	h.Shoff = uint64(len(out))
	h.Shnum = uint16(len(kept))
	h.Shstrndx = uint16(index[h.Shstrndx])
	out = append(out, headers...)
	if _, err := binary.Encode(out, binary.LittleEndian, h); err != nil {
		return nil, err
	}
	return out, nil
}

func align(b []byte, to uint64) []byte {
	if to > 1 {
		if over := uint64(len(b)) % to; over != 0 {
			b = append(b, make([]byte, to-over)...)
		}
	}
	return b
}
