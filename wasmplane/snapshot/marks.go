package snapshot

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

// Marks is a small file that says which guests' snapshots are behind the
// cluster: the guest has changed something since it was saved. Started again
// from such a snapshot, it would not know what it had done, so it must start
// cold.
//
// The file is one line per mark, the boot ID first. It is written without
// waiting for the disk: after a crash of the process it is there, and after a
// crash of the machine the boot ID is another and every guest is in doubt. Only
// an orderly Close leaves a line that outlives the boot.
//
// Safe for concurrent use.
type Marks struct {
	mu     sync.Mutex
	file   *os.File
	boot   string
	marked map[string]bool
	before map[string]bool // marks that were found
	doubt  bool            // everything found is in doubt
	failed bool            // the last write failed: the file may not hold what marked says
}

const (
	marksHeader = "dormouse marks 1"
	cleanLine   = "clean"
)

// OpenMarks opens or makes the file. boot identifies the machine's boot, see
// /proc/sys/kernel/random/boot_id.
func OpenMarks(path, boot string) (*Marks, error) {
	m := &Marks{boot: boot, marked: map[string]bool{}, before: map[string]bool{}}
	switch b, err := os.ReadFile(path); {
	case err == nil:
		m.parse(string(b))
	case os.IsNotExist(err):
		m.doubt = true
	default:
		return nil, fmt.Errorf("reading the marks of awake guests: %w", err)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the marks of awake guests: %w", err)
	}
	m.file = file
	for name := range m.before {
		m.marked[name] = true
	}
	// From here on a crash of the machine leaves everything in doubt.
	if err := m.write(""); err != nil {
		return nil, err
	}
	if err := file.Sync(); err != nil {
		return nil, fmt.Errorf("writing the marks of awake guests: %w", err)
	}
	return m, nil
}

func (m *Marks) parse(text string) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 3 || lines[0] != marksHeader || lines[len(lines)-1] != "end" {
		m.doubt = true
		return
	}
	for _, l := range lines[2 : len(lines)-1] {
		m.before[l] = true
	}
	clean := m.before[cleanLine]
	delete(m.before, cleanLine)
	m.doubt = !clean && lines[1] != m.boot
}

// InDoubt reports whether the snapshot that was found for name may be behind
// what the guest has done.
func (m *Marks) InDoubt(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.doubt || m.before[name]
}

// Set says that a guest is about to change something.
func (m *Marks) Set(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.marked[name] && !m.failed {
		return nil
	}
	m.marked[name] = true
	return m.write("")
}

// Clear says that a guest has been saved, or has no snapshot.
func (m *Marks) Clear(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.marked[name] && !m.failed {
		return nil
	}
	delete(m.marked, name)
	return m.write("")
}

// Close ends the run in good order; no guest may run any more.
func (m *Marks) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write(cleanLine); err != nil {
		return err
	}
	if err := m.file.Sync(); err != nil {
		return fmt.Errorf("writing the marks of awake guests: %w", err)
	}
	return m.file.Close()
}

// write replaces the content with one write call, which a crash of the process
// cannot split. The last line tells a whole file.
func (m *Marks) write(extra string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", marksHeader, m.boot)
	for name := range m.marked {
		fmt.Fprintln(&b, name)
	}
	if extra != "" {
		fmt.Fprintln(&b, extra)
	}
	b.WriteString("end\n")
	m.failed = true
	if _, err := m.file.WriteAt([]byte(b.String()), 0); err != nil {
		return fmt.Errorf("writing the marks of awake guests: %w", err)
	}
	reached("marks: written")
	if err := m.file.Truncate(int64(b.Len())); err != nil {
		return fmt.Errorf("writing the marks of awake guests: %w", err)
	}
	m.failed = false
	return nil
}
