package runtime

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FailProcessVMWritev has the kernel refuse process_vm_writev(2) until the test ends.
func FailProcessVMWritev(t *testing.T, err error) {
	t.Cleanup(func() { processVMWritev = unix.ProcessVMWritev })
	processVMWritev = func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error) { return -1, err }
}
