package runtime_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/dormouse-k8s/dormouse/wasmplane/runtime"
)

// TestSlots: a guest that is restored may come where another was. It finds nothing of that one.
func TestSlots(t *testing.T) {
	const wasmPage, initial = 64 << 10, 4 * 64 << 10
	// The pump writes into the image, into zeros, and into what it has grown by.
	code := newCode(t, watText(`
		(global.set $g (memory.grow (i32.const 2)))
		(memory.fill (i32.const 2) (i32.const 7) (i32.const 5000))
		(memory.fill (i32.const 100000) (i32.const 7) (i32.const 70000))
		(memory.fill (i32.mul (global.get $g) (i32.const 65536)) (i32.const 7) (i32.const 65536))`), "g", "h")
	instance := func(size int64) *runtime.Instance {
		t.Helper()
		i, err := code.Instantiate(newHost(t).restored(size))
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	leave := func(i *runtime.Instance, runs int) {
		t.Helper()
		for range runs {
			if err := i.Run(); err != nil {
				t.Fatal(err)
			}
		}
		dirty(t, i)
		i.Close()
	}
	free := func(want ...int64) {
		t.Helper()
		for k := range want {
			want[k] = initial + want[k]*wasmPage
		}
		if got := slices.Sorted(slices.Values(code.Free())); !slices.Equal(got, want) {
			t.Fatalf("slots of %d bytes are free, want %d", got, want)
		}
	}
	leave(instance(0), 1)
	free(2)

	begins, grown, small := instance(0), instance(initial+3*wasmPage), instance(initial+wasmPage)
	free()
	if n, err := grown.Resident(); err != nil || n != 0 {
		t.Errorf("the next in a slot holds %d bytes, %v", n, err)
	}
	want := append(bytes.Clone(begins.Memory()), make([]byte, 3*wasmPage)...)
	if !bytes.Equal(grown.Memory(), want) {
		t.Error("something is left of the guest that was there before")
	}
	if !bytes.Equal(small.Memory(), want[:initial+wasmPage]) {
		t.Error("the memory is not as it was asked for")
	}
	if g, err := begins.Globals(); err != nil || !slices.Equal(g, []uint64{1, 2}) {
		t.Errorf("one that begins has globals %v, %v", g, err)
	}
	page := bytes.Repeat([]byte{3}, runtime.PageSize)
	restore(t, grown, map[int][]byte{2: runtime.AppendDelta(nil, page, nil)})
	copy(want[2*runtime.PageSize:], page)
	if !bytes.Equal(grown.Memory(), want) {
		t.Error("other memory after a restore")
	}
	leave(grown, 1)
	leave(small, 0)
	free(1, 5)

	code.DropSlots()
	free()

	// Of many those stay in which the image is mapped.
	var many []*runtime.Instance
	for n := range int64(runtime.MaxFree + 1) {
		many = append(many, instance(initial+n*wasmPage))
	}
	for n, i := range many {
		if n != 2 && i.Memory()[0] != 'i' {
			t.Error("other memory")
		}
	}
	for _, i := range many {
		leave(i, 0)
	}
	free(0, 1, 3, 4)
	many[0] = instance(initial + 3*wasmPage)
	free(0, 1, 4)
	restore(t, many[0], nil)
	code.Prepared()
	free(1, 4) // most guests fit into the smallest
	code.DropSlots()
	free()
	for _, i := range many {
		i.Close() // again, but for the first
	}
	free(3)
	begins.Close()
}

// TestSlotsThatAreNotKept: one whose guest was ended, and all of a module that has memory of its own from the start.
func TestSlotsThatAreNotKept(t *testing.T) {
	for name, wat := range map[string]string{
		"trapped": watText(`unreachable`),
		"memory that its start function has written": `(module
			(memory (export "memory") 1)
			(func $begin (i32.store (i32.const 8) (i32.const 1)))
			(start $begin)
			(func (export "dormouse_abi_2"))
			(func (export "dormouse_pump")))`,
	} {
		t.Run(name, func(t *testing.T) {
			code := newCode(t, wat)
			i, err := code.Instantiate(newHost(t).config())
			if err != nil {
				t.Fatal(err)
			}
			dirty(t, i)
			_ = i.Run()
			i.Close()
			if got := code.Free(); len(got) != 0 {
				t.Errorf("slots of %d bytes are free", got)
			}
		})
	}
}
