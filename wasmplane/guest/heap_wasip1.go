package guest

import (
	"runtime"
	"runtime/metrics"
	"unsafe"
)

// holes keeps the free places between the objects of the base image taken.
var holes []unsafe.Pointer

// fillHoles takes every free place between the objects that are there. They lie all
// over the heap, and Go allocates there first: for each small object a guest would get
// a whole page of its own. What it allocates now lies together.
//
// It is called with the garbage collector switched off, after a collection.
func fillHoles() {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	for _, class := range stats.BySize {
		for _, allocate := range []func(size uintptr) unsafe.Pointer{allocatePlain, allocatePointers} {
			for size := uintptr(class.Size); size > 0; {
				before := heapSize()
				p := allocate(size)
				if heapSize() != before {
					break // a new span: in the others there was no place left
				}
				holes = append(holes, p)
			}
		}
	}
}

// heapSize is how many bytes Go's allocator has set aside for objects.
func heapSize() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(samples)
	return samples[0].Value.Uint64() + samples[1].Value.Uint64()
}

// allocatePlain and allocatePointers allocate an object of a size without and with
// pointers, which Go keeps apart.
func allocatePlain(size uintptr) unsafe.Pointer {
	return unsafe.Pointer(unsafe.SliceData(make([]byte, size)))
}

func allocatePointers(size uintptr) unsafe.Pointer {
	if size > maxHeaderless {
		size -= unsafe.Sizeof(size) // Go puts the type in front
	}
	return unsafe.Pointer(unsafe.SliceData(make([]*byte, size/unsafe.Sizeof(size))))
}

// maxHeaderless is the size in bytes up to which objects with pointers have no
// header: MinSizeForMallocHeader in internal/runtime/gc.
const maxHeaderless = 512
