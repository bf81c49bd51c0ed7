// Package bake turns the guest program, as go build made it, into the file that
// package module loads:
//
//	ExportGlobals  so that all of a guest's state can be read and written
//	Bake           runs the program's initialisation once and for all
//	Compile        to machine code
//	Strip          what nobody reads at run time
package bake

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Section numbers of the WebAssembly binary format, version 1.
const (
	sectionCustom    = 0
	sectionImport    = 2
	sectionMemory    = 5
	sectionGlobal    = 6
	sectionExport    = 7
	sectionStart     = 8
	sectionData      = 11
	sectionDataCount = 12
)

// Kinds of imports and exports.
const (
	kindFunc   = 0
	kindTable  = 1
	kindMemory = 2
	kindGlobal = 3
	kindTag    = 4
)

// Types and opcodes.
const (
	typeI32    = 0x7f
	typeI64    = 0x7e
	typeF32    = 0x7d
	typeF64    = 0x7c
	opI32Const = 0x41
	opI64Const = 0x42
	opF32Const = 0x43
	opF64Const = 0x44
	opEnd      = 0x0b
)

var preamble = []byte("\x00asm\x01\x00\x00\x00")

type section struct {
	id   byte
	body []byte
}

// binaryModule is a WebAssembly module split into its sections, which are left
// as they are.
type binaryModule struct {
	sections []section
}

// parse splits a module. It does not copy.
func parse(b []byte) (*binaryModule, error) {
	rest, ok := bytes.CutPrefix(b, preamble)
	if !ok {
		return nil, errors.New("not a WebAssembly module of version 1")
	}
	m := &binaryModule{}
	r := reader{rest: rest}
	for len(r.rest) > 0 && r.err == nil {
		id := r.byte()
		body := r.take(r.u32())
		if r.err == nil && id != sectionCustom && m.find(id) != nil {
			return nil, fmt.Errorf("section %d occurs twice", id)
		}
		m.sections = append(m.sections, section{id, body})
	}
	if r.err != nil {
		return nil, fmt.Errorf("section %d: %w", len(m.sections)-1, r.err)
	}
	return m, nil
}

// find returns the section with that number, or nil. The pointer is valid until
// sections are added or removed.
func (m *binaryModule) find(id byte) *section {
	for i := range m.sections {
		if m.sections[i].id == id {
			return &m.sections[i]
		}
	}
	return nil
}

func (m *binaryModule) remove(ids ...byte) {
	m.sections = slices.DeleteFunc(m.sections, func(s section) bool { return slices.Contains(ids, s.id) })
}

func (m *binaryModule) encode() []byte {
	size := len(preamble)
	for _, s := range m.sections {
		size += 6 + len(s.body)
	}
	b := append(make([]byte, 0, size), preamble...)
	for _, s := range m.sections {
		b = append(b, s.id)
		b = appendBytes(b, s.body)
	}
	return b
}

// imported counts the imports of a kind.
func (m *binaryModule) imported(kind byte) (int, error) {
	s := m.find(sectionImport)
	if s == nil {
		return 0, nil
	}
	n := 0
	r := reader{rest: s.body}
	for range r.count() {
		r.take(r.u32()) // module
		r.take(r.u32()) // name
		k := r.byte()
		switch k {
		case kindFunc:
			r.u32()
		case kindTable:
			r.byte()
			r.limits()
		case kindMemory:
			r.limits()
		case kindGlobal:
			r.byte()
			r.byte()
		case kindTag:
			r.byte()
			r.u32()
		default:
			r.fail(fmt.Errorf("unknown kind %d", k))
		}
		if k == kind {
			n++
		}
	}
	if err := r.end(); err != nil {
		return 0, fmt.Errorf("import section: %w", err)
	}
	return n, nil
}

// global is one entry of the global section.
type global struct {
	typ     byte
	mutable bool
	init    []byte // the expression, with its end
}

func (m *binaryModule) globals() ([]global, error) {
	s := m.find(sectionGlobal)
	if s == nil {
		return nil, nil
	}
	var gs []global
	r := reader{rest: s.body}
	for range r.count() {
		g := global{typ: r.byte(), mutable: r.byte() == 1}
		before := r.rest
		switch op := r.byte(); op {
		case opI32Const, opI64Const:
			r.sleb()
		case opF32Const:
			r.take(4)
		case opF64Const:
			r.take(8)
		default:
			r.fail(fmt.Errorf("initial value with opcode %#x", op))
		}
		if r.byte() != opEnd {
			r.fail(errors.New("initial value is not a constant"))
		}
		if r.err != nil {
			break
		}
		g.init = before[:len(before)-len(r.rest)]
		gs = append(gs, g)
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("global section: %w", err)
	}
	return gs, nil
}

func encodeGlobals(gs []global) []byte {
	b := binary.AppendUvarint(nil, uint64(len(gs)))
	for _, g := range gs {
		mutable := byte(0)
		if g.mutable {
			mutable = 1
		}
		b = append(b, g.typ, mutable)
		b = append(b, g.init...)
	}
	return b
}

// export is one entry of the export section.
type export struct {
	name  string
	kind  byte
	index uint32
}

func (m *binaryModule) exports() ([]export, error) {
	s := m.find(sectionExport)
	if s == nil {
		return nil, nil
	}
	var es []export
	r := reader{rest: s.body}
	for range r.count() {
		es = append(es, export{name: string(r.take(r.u32())), kind: r.byte(), index: r.u32()})
		if r.err != nil {
			break
		}
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("export section: %w", err)
	}
	return es, nil
}

func encodeExports(es []export) []byte {
	b := binary.AppendUvarint(nil, uint64(len(es)))
	for _, e := range es {
		b = appendBytes(b, []byte(e.name))
		b = append(b, e.kind)
		b = binary.AppendUvarint(b, uint64(e.index))
	}
	return b
}

// limits are the sizes of a memory in pages.
type limits struct {
	flags    byte
	min, max uint64 // max only if flags has bit 0
}

// memory reads the section of the module's only memory.
func (m *binaryModule) memory() (limits, error) {
	s := m.find(sectionMemory)
	if s == nil {
		return limits{}, errors.New("the module has no memory of its own")
	}
	r := reader{rest: s.body}
	if n := r.count(); n != 1 && r.err == nil {
		return limits{}, fmt.Errorf("the module has %d memories, want one", n)
	}
	l := r.limits()
	if err := r.end(); err != nil {
		return limits{}, fmt.Errorf("memory section: %w", err)
	}
	return l, nil
}

func encodeMemory(l limits) []byte {
	b := append([]byte{1}, l.flags)
	b = binary.AppendUvarint(b, l.min)
	if l.flags&1 != 0 {
		b = binary.AppendUvarint(b, l.max)
	}
	return b
}

func appendBytes(b, body []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(body)))
	return append(b, body...)
}

func appendSleb(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if (v == 0 && c&0x40 == 0) || (v == -1 && c&0x40 != 0) {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

var (
	errShort = errors.New("ends too early")
	errRange = errors.New("number out of range")
)

// reader takes values from rest and keeps the first error.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest = nil
}

func (r *reader) byte() byte {
	if len(r.rest) == 0 {
		r.fail(errShort)
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(len(r.rest)) {
		r.fail(errShort)
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uleb(most uint64) uint64 {
	v, n := binary.Uvarint(r.rest)
	switch {
	case n == 0:
		r.fail(errShort)
		return 0
	case n < 0 || v > most:
		r.fail(errRange)
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) u32() uint32 { return uint32(r.uleb(1<<32 - 1)) }

// count reads the length of a vector, whose elements take at least one byte.
func (r *reader) count() uint32 {
	n := r.u32()
	if uint64(n) > uint64(len(r.rest)) {
		r.fail(errShort)
		return 0
	}
	return n
}

func (r *reader) sleb() {
	for n := 0; ; n++ {
		if n == 10 {
			r.fail(errRange)
			return
		}
		if r.byte()&0x80 == 0 {
			return
		}
	}
}

func (r *reader) limits() limits {
	l := limits{flags: r.byte()}
	l.min = r.uleb(1<<63 - 1)
	if l.flags&1 != 0 {
		l.max = r.uleb(1<<63 - 1)
	}
	return l
}

func (r *reader) end() error {
	if r.err == nil && len(r.rest) > 0 {
		r.err = fmt.Errorf("%d bytes too many", len(r.rest))
	}
	return r.err
}
