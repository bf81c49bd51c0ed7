package packaging

import (
	gover "go/version"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// instructions splits a Dockerfile into its instructions: keyword and arguments.
func instructions(dockerfile string) (list [][2]string) {
	var whole string
	for line := range strings.Lines(dockerfile) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		whole += line
		if next, continued := strings.CutSuffix(whole, `\`); continued {
			whole = next
			continue
		}
		keyword, arguments, _ := strings.Cut(whole, " ")
		list = append(list, [2]string{keyword, arguments})
		whole = ""
	}
	return list
}

// TestDockerfile: what can be said without an engine. Stages that are copied from exist, files that are copied exist and
// are not kept out by .dockerignore, Go is new enough for go.mod, and the image starts the server with nft at hand.
func TestDockerfile(t *testing.T) {
	var ignored []string
	for line := range strings.Lines(readFile(t, "../.dockerignore")) {
		ignored = append(ignored, strings.TrimSpace(line))
	}
	var goVersion string
	for line := range strings.Lines(readFile(t, "../go.mod")) {
		if version, ok := strings.CutPrefix(line, "go "); ok {
			goVersion = strings.TrimSpace(version)
		}
	}
	known := map[string]bool{"FROM": true, "RUN": true, "WORKDIR": true, "COPY": true, "VOLUME": true, "EXPOSE": true,
		"STOPSIGNAL": true, "ENTRYPOINT": true, "CMD": true, "ARG": true, "ENV": true}
	stages := map[string]bool{}
	last := map[string]string{}
	for _, instruction := range instructions(readFile(t, "../Dockerfile")) {
		keyword, arguments := instruction[0], strings.Fields(instruction[1])
		if !known[keyword] {
			t.Errorf("unknown instruction %s", keyword)
		}
		switch keyword {
		case "FROM":
			last = map[string]string{}
			if len(arguments) == 3 {
				stages[arguments[2]] = true
			}
			if version, ok := strings.CutPrefix(arguments[0], "golang:"); ok {
				version, _, _ = strings.Cut(version, "-")
				if gover.Compare("go"+version, "go"+goVersion) < 0 {
					t.Errorf("built with Go %s, go.mod wants %s", version, goVersion)
				}
			}
		case "COPY":
			if stage, ok := strings.CutPrefix(arguments[0], "--from="); ok {
				if !stages[stage] {
					t.Errorf("COPY from stage %q, which does not exist", stage)
				}
				break
			}
			for _, source := range arguments[:len(arguments)-1] {
				if _, err := os.Stat(filepath.Join("..", source)); err != nil {
					t.Errorf("COPY: %v", err)
				}
				for _, pattern := range ignored {
					if source == pattern {
						t.Errorf("COPY %s, which .dockerignore keeps out", source)
					}
				}
			}
		}
		last[keyword] += instruction[1] + "\n"
	}
	wantContains(t, last["RUN"], "nftables")
	wantContains(t, last["ENTRYPOINT"]+last["CMD"], `["/usr/local/bin/dormouse"]`+"\n"+`["server"]`)
}
