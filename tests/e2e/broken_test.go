package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cutArchive and noArchive are files that TestBrokenFiles puts where the node
// looks for images.
const (
	cutArchive = "cut-off.tar.zst"
	noArchive  = "no-archive.tar"
)

// brokenArchives writes files that look like image archives, and returns their paths.
func brokenArchives(dir string) ([]string, error) {
	good, err := os.ReadFile(filepath.Join(*imagesFlag, "web.tar.zst"))
	if err != nil {
		return nil, err
	}
	cut, none := filepath.Join(dir, cutArchive), filepath.Join(dir, noArchive)
	if err := os.WriteFile(cut, good[:len(good)/2], 0o600); err != nil {
		return nil, err
	}
	return []string{cut, none}, os.WriteFile(none, []byte(strings.Repeat("dormouse ", 1000)), 0o600)
}

// TestBrokenFiles: neither broken image archives nor a broken manifest, which lie
// there during all of these tests, stop the node. Each is named in the log, an
// archive once for each start.
func TestBrokenFiles(t *testing.T) {
	w := theNode(t)
	log, err := os.ReadFile(w.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(log), "\n")
	starts := naming(lines, "starting dormouse")
	for _, archive := range []string{cutArchive, noArchive} {
		if n := naming(lines, archive); n == 0 || n > starts {
			t.Errorf("%s is named in %d lines of the log, in %d starts", archive, n, starts)
		}
	}
	if naming(lines, "broken.yaml") == 0 {
		t.Error("the broken manifest is not named in the log")
	}
}

// naming counts the lines that contain a text.
func naming(lines []string, text string) int {
	n := 0
	for _, line := range lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
