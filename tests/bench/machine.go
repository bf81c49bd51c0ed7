package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is where and what was measured.
type Machine struct {
	Time       time.Time `json:"time"`
	Arch       string    `json:"arch"`
	CPU        string    `json:"cpu"`
	Cores      int       `json:"cores"`
	Memory     int64     `json:"memory"` // bytes
	Kernel     string    `json:"kernel"`
	Filesystem string    `json:"filesystem"` // of the data directories
	// NewPage is how long it takes until a new page of memory can be used, in microseconds. Virtual machines differ by more
	// than tenfold in it, and what comes into memory, as a controller does that wakes, is as fast as that.
	NewPage    float64 `json:"newPage"`
	Go         string  `json:"go"` // that compiled the bench
	Dormouse   string  `json:"dormouse"`
	BinarySize int64   `json:"binarySize"` // bytes
}

func describeMachine(ctx context.Context, binary, dir string) (Machine, error) {
	m := Machine{Time: time.Now().Truncate(time.Second), Arch: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version()}
	info, err := os.Stat(binary)
	if err != nil {
		return m, err
	}
	m.BinarySize = info.Size()
	// A program that cannot say its version can be measured all the same.
	m.Dormouse = "dormouse of unknown version"
	if version, err := exec.CommandContext(ctx, binary, "--version").Output(); err == nil {
		m.Dormouse = strings.ReplaceAll(strings.TrimSpace(string(version)), "\n", ", ")
	}
	memory, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return m, err
	}
	m.Memory = keyed(memory)["MemTotal"] << 10
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(cpu)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" || m.CPU == "" && strings.TrimSpace(key) == "Model" {
			m.CPU = strings.TrimSpace(value)
		}
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("asking for the kernel's version: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(name.Release[:])
	if m.NewPage, err = newPage(); err != nil {
		return m, err
	}
	m.Filesystem, err = filesystem(dir)
	return m, err
}

// newPage measures Machine.NewPage.
func newPage() (float64, error) {
	const size = 16 << 20
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, fmt.Errorf("mapping memory: %w", err)
	}
	_ = unix.Madvise(memory, unix.MADV_NOHUGEPAGE) // a kernel without huge pages refuses
	began := time.Now()
	for k := 0; k < size; k += os.Getpagesize() {
		memory[k] = 1
	}
	took := time.Since(began)
	if err := unix.Munmap(memory); err != nil {
		return 0, fmt.Errorf("unmapping memory: %w", err)
	}
	return float64(took.Nanoseconds()) / 1e3 / float64(size/os.Getpagesize()), nil
}

// filesystem names the type of the file system that a directory is on.
func filesystem(dir string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("asking for the file system of %s: %w", dir, err)
	}
	known := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.F2FS_SUPER_MAGIC: "f2fs",
	}
	if name := known[int64(st.Type)]; name != "" {
		return name, nil
	}
	return fmt.Sprintf("%#x", st.Type), nil
}

func (m Machine) print(out io.Writer) {
	fmt.Fprintf(out, "%s  %s, %d cores, %s of memory, Linux %s, %s\n", m.Time.Format(time.DateTime), m.CPU, m.Cores, bytesText(m.Memory), m.Kernel, m.Filesystem)
	fmt.Fprintf(out, "%s, %s; a new page of memory takes %.1f µs\n", m.Dormouse, bytesText(m.BinarySize), m.NewPage)
}

// loadAverage is the machine's over the last minute; high where others use it too.
func loadAverage() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	var load float64
	_, err = fmt.Sscan(string(text), &load)
	return load, err
}
