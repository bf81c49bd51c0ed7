package bake

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bytecodealliance/wasmtime-go/v39"

	"github.com/dormouse-k8s/dormouse/wasmplane/module"
)

// program is a guest that initialises a global and a page of memory far away
// from its data. dormouse_pump returns 1 if both are as they should be.
const program = `(module
	(import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
	(memory (export "memory") 1)
	(data (i32.const 16) "data")
	(global $constant i32 (i32.const 5))
	(global $big (mut i64) (i64.const 1))
	(global $small (mut i32) (i32.const -1))
	(func (export "dormouse_abi_2"))
	(func (export "_initialize")
		(drop (memory.grow (i32.const 2)))
		(drop (call $clock (i32.const 1) (i64.const 0) (i32.const 100000)))
		(global.set $big (i64.const -7000000000)))
	(func (export "dormouse_bake")
		(global.set $small (i32.const -2147483648)))
	(func (export "dormouse_pump")
		(if (i32.and (i32.and
				(i64.eq (global.get $big) (i64.const -7000000000))
				(i32.eq (global.get $small) (i32.const -2147483648)))
			(i32.and
				(i32.eq (i32.load (i32.const 16)) (i32.const 0x61746164))
				(i64.eq (i64.load (i32.const 100000)) (i64.const 3600000000000))))
		(then (return)))
		unreachable))`

func wat(t testing.TB, text string) []byte {
	t.Helper()
	b, err := wasmtime.Wat2Wasm(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// baked runs everything up to the image.
func baked(t testing.TB) ([]byte, []string) {
	t.Helper()
	exported, globals, err := ExportGlobals(wat(t, program))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Bake(context.Background(), exported, globals, func(line string) { t.Log(line) })
	if err != nil {
		t.Fatal(err)
	}
	return b, globals
}

func TestModuleStartsWhereInitialisationEnded(t *testing.T) {
	wasm, globals := baked(t)
	if want := []string{"__g1", "__g2"}; !slices.Equal(globals, want) {
		t.Errorf("globals %v, want %v", globals, want)
	}
	again, _ := baked(t)
	if !bytes.Equal(wasm, again) {
		t.Error("equal programs gave different images")
	}
	if pages, err := Pages(wasm); err != nil || pages != 3 {
		t.Errorf("%d pages, %v; want 3", pages, err)
	}

	image, err := Compile(wasm)
	if err != nil {
		t.Fatal(err)
	}
	stripped, err := Strip(image)
	if err != nil {
		t.Fatal(err)
	}
	if len(stripped) >= len(image) {
		t.Errorf("%d bytes became %d by stripping", len(image), len(stripped))
	}
	file, err := module.Encode(stripped, module.Info{Globals: globals})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "test.cwasm")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := module.Verify(name); err != nil {
		t.Fatal(err)
	}
	m, err := module.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	run(t, m)
}

func run(t *testing.T, m *module.Module) {
	store := wasmtime.NewStore(m.Engine)
	defer store.Close()
	store.SetEpochDeadline(1)
	linker := wasmtime.NewLinker(m.Engine)
	defer linker.Close()
	if err := linker.DefineWasi(); err != nil {
		t.Fatal(err)
	}
	i, err := linker.Instantiate(store, m.Wasmtime)
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"_initialize", "dormouse_bake"} {
		if i.GetExport(store, gone) != nil {
			t.Errorf("%s could be called again", gone)
		}
	}
	for _, name := range m.Globals {
		if i.GetExport(store, name) == nil {
			t.Errorf("global %s is not exported", name)
		}
	}
	if _, err := i.GetFunc(store, "dormouse_pump").Call(store); err != nil {
		t.Errorf("the state is not what initialisation left: %v", err)
	}
}

func TestProgramsThatCannotBeSaved(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"imported global", `(module (import "a" "b" (global (mut i32))) (func (export "f")))`, "imports globals"},
		{"float global", `(module (global (mut f64) (f64.const 1)) (func (export "f")))`, "only integers"},
		{"no exports", `(module)`, "exports nothing"},
		{"taken name", `(module (global (export "__g0") (mut i32) (i32.const 1)))`, "exports __g0 already"},
	} {
		if _, _, err := ExportGlobals(wat(t, c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	passive := wat(t, `(module (memory (export "memory") 1) (data "x") (func (export "f") (data.drop 0)))`)
	if _, err := replaceState(passive, make([]byte, wasmPage), nil); err == nil {
		t.Error("a module with passive data was accepted")
	}
}

func TestBakeReportsWhatTheProgramSaid(t *testing.T) {
	broken := strings.Replace(program, "(global.set $small", "unreachable (global.set $small", 1)
	exported, globals, err := ExportGlobals(wat(t, broken))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Bake(context.Background(), exported, globals, func(string) {}); err == nil || !strings.Contains(err.Error(), "dormouse_bake") {
		t.Errorf("%v", err)
	}
}

func TestStripRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, b := range [][]byte{nil, []byte("\x7fELF"), make([]byte, 1000)} {
		if _, err := Strip(b); err == nil {
			t.Errorf("%q was accepted", b[:min(len(b), 10)])
		}
	}
}

func FuzzBinary(f *testing.F) {
	f.Add(wat(f, program))
	f.Add(wat(f, `(module (import "a" "b" (memory 1)) (import "a" "c" (table 1 2 funcref)) (import "a" "d" (global i32)) (start 0) (func))`))
	f.Add([]byte("\x00asm\x01\x00\x00\x00\x06\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		again, err := parse(m.encode())
		if err != nil {
			t.Fatalf("what was encoded cannot be parsed: %v", err)
		}
		if len(again.sections) != len(m.sections) {
			t.Fatalf("%d sections became %d", len(m.sections), len(again.sections))
		}
		exported, globals, err := ExportGlobals(b)
		if err != nil {
			return
		}
		_, _ = replaceState(exported, make([]byte, 2*wasmPage), make([]uint64, len(globals)))
	})
}

func FuzzStrip(f *testing.F) {
	image, err := Compile(wat(f, program))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(image)
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = Strip(b) })
}
