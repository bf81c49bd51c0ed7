package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ledgerVersion is the format of the ledger file. A file of another version is
// not read: its archives are imported once more, which does no harm.
const ledgerVersion = 1

// ledger remembers which archives have been imported, so that a restart does
// not import them again. An archive is known by the digest of its content, not
// by its name or its time of change.
//
//	{
//	  "version": 1,
//	  "archives": {
//	    "sha256:…": {                         digest of the archive file
//	      "file": "web.tar.zst",              its name when it was imported
//	      "images": {
//	        "docker.io/dormouse/web:v1": "sha256:…"   name and manifest digest of each image
//	      }
//	    }
//	  }
//	}
type ledger struct {
	Version  int               `json:"version"`
	Archives map[string]record `json:"archives"`

	path string
}

type record struct {
	File   string            `json:"file"`
	Images map[string]string `json:"images"`
}

// openLedger reads the ledger at path. A missing, damaged or foreign file is an
// empty ledger.
func openLedger(path string) (*ledger, error) {
	empty := &ledger{Version: ledgerVersion, Archives: map[string]record{}, path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the ledger of imported images: %w", err)
	}
	l := &ledger{path: path}
	if err := json.Unmarshal(b, l); err != nil || l.Version != ledgerVersion || l.Archives == nil {
		return empty, nil
	}
	return l, nil
}

// add records an imported archive and saves the ledger.
func (l *ledger) add(digest string, r record) error {
	l.Archives[digest] = r
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	tmp := l.path + ".tmp"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the ledger of imported images: %w", err)
	}
	if err := os.Rename(tmp, l.path); err != nil {
		return fmt.Errorf("save the ledger of imported images: %w", err)
	}
	return nil
}
