// Package deploy applies manifests to the cluster: those that come with the program, and those that an
// administrator puts into a directory.
//
// The directory works as users of k3s know it. Every .yaml, .yml and .json file in it or below is applied
// at start and whenever its content changes; a file x.yaml.skip beside x.yaml suppresses it. A removed
// file leaves its objects alone. Objects are applied on the server's side, so that what a manifest does
// not mention belongs to whoever else sets it. What fails is tried again, less and less often; what
// cannot be read as a manifest waits until it changes. Neither stops anything else.
package deploy

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"

	"github.com/dormouse-k8s/dormouse/internal/paths"
)

// Config is what is applied, and how.
type Config struct {
	// Client reaches the API server, which is ready, as somebody who may do everything.
	Client *rest.Config
	// Embedded are the manifests that come with the program: *.yaml at any depth.
	Embedded fs.FS
	// Dir is the administrator's directory, created if it is missing. Its parent exists.
	Dir string
}

// embeddedPatience bounds how long the first attempt at the embedded manifests may hold up the start:
// in a cluster that has lost an admission webhook they may be refused, and are in force already.
const embeddedPatience = 5 * time.Second

// retries are the pauses before what has failed is tried again.
var retries = wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Steps: 20, Cap: 5 * time.Minute}

// Run applies the embedded manifests, calls ready, and then keeps applying those of the directory until
// ctx is done. Roles among the embedded ones are in force when it calls ready. Manifests that fail are
// logged; an error means that cfg is unusable.
func Run(ctx context.Context, cfg Config, ready func()) error {
	d, err := newDeployer(cfg)
	if err != nil {
		return err
	}
	// One that exists may be a link to where nothing can be changed.
	if _, err := os.Stat(cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		if err := paths.MakeDir(cfg.Dir, paths.ModePrivateDir); err != nil {
			logrus.Warn(err)
		}
	}
	if err := d.start(ctx); err != nil && ctx.Err() == nil {
		logrus.Warn(err)
	}
	ready()
	d.follow(ctx, cfg.Dir)
	return nil
}

// deployer knows what has been applied.
type deployer struct {
	*applier
	reviews  authorizationclient.SubjectAccessReviewInterface
	embedded []manifest
	// settled are the manifests that need no further work, by name.
	settled map[string][sha256.Size]byte
	// reported is what was last logged about a manifest that failed, by name.
	reported map[string]string
}

// manifest is the content of a file.
type manifest struct {
	name    string
	content []byte
	level   logrus.Level // of the line that says that it has been applied
}

func newDeployer(cfg Config) (*deployer, error) {
	config := rest.CopyConfig(cfg.Client)
	config.QPS = -1 // the API server's own fairness decides
	config.UserAgent = fieldManager
	a, err := newApplier(config)
	if err != nil {
		return nil, err
	}
	authorization, err := authorizationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("building an authorization client: %w", err)
	}
	d := &deployer{applier: a, reviews: authorization.SubjectAccessReviews(), settled: map[string][sha256.Size]byte{}, reported: map[string]string{}}
	err = fs.WalkDir(cfg.Embedded, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		content, err := fs.ReadFile(cfg.Embedded, path)
		d.embedded = append(d.embedded, manifest{name: "(built in) " + path, content: content, level: logrus.DebugLevel})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the embedded manifests: %w", err)
	}
	return d, nil
}

// start applies the embedded manifests once and waits until the roles among them are in force.
func (d *deployer) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, embeddedPatience)
	defer cancel()
	if !d.applyAll(ctx, d.embedded) {
		return nil // logged, and tried again later
	}
	var objects []*unstructured.Unstructured
	for _, m := range d.embedded {
		o, err := decode(m.content)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", m.name, err)
		}
		objects = append(objects, o...)
	}
	return awaitAccess(ctx, d.reviews, objects)
}

// follow applies what is in dir, and what changes there, until ctx is done. While nothing changes and
// nothing has failed it only waits.
func (d *deployer) follow(ctx context.Context, dir string) {
	directory := openDirectory(dir)
	defer directory.close()
	backoff := retries
	for {
		before := len(d.settled)
		complete := d.applyAll(ctx, append(d.read(directory), d.embedded...))
		var again <-chan time.Time
		if !complete {
			if len(d.settled) > before {
				backoff = retries // what has been applied may be what the others waited for
			}
			again = time.After(backoff.Step())
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-directory.changed:
			directory.settle(ctx)
			backoff = retries
		}
	}
}

// read returns the manifests in the directory, and forgets those that are no longer there.
func (d *deployer) read(dir *directory) []manifest {
	files, err := dir.files()
	d.report(dir.path, err)
	var manifests []manifest
	there := map[string]bool{dir.path: true}
	for _, m := range d.embedded {
		there[m.name] = true
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		there[path] = true
		if err != nil {
			d.report(path, err)
			continue
		}
		manifests = append(manifests, manifest{name: path, content: content, level: logrus.InfoLevel})
	}
	for name := range d.settled {
		if !there[name] {
			delete(d.settled, name)
		}
	}
	for name := range d.reported {
		if !there[name] {
			delete(d.reported, name)
		}
	}
	return manifests
}

// applyAll applies the manifests that are not settled. It returns whether all are now.
func (d *deployer) applyAll(ctx context.Context, manifests []manifest) bool {
	d.forget()
	complete := true
	for _, m := range manifests {
		digest := sha256.Sum256(m.content)
		if d.settled[m.name] == digest {
			continue
		}
		delete(d.settled, m.name)
		objects, err := decode(m.content)
		if err != nil {
			d.report(m.name, fmt.Errorf("ignored until it changes: %w", err))
			d.settled[m.name] = digest
			continue
		}
		taken, err := d.apply(ctx, objects)
		if ctx.Err() != nil {
			return false
		}
		d.report(m.name, err)
		if err != nil {
			complete = false
			continue
		}
		logrus.StandardLogger().Logf(m.level, "applied manifest %s (%d objects)", m.name, taken)
		d.settled[m.name] = digest
	}
	return complete
}

// report logs a failure, once as long as it stays the same.
func (d *deployer) report(name string, err error) {
	if err == nil {
		delete(d.reported, name)
		return
	}
	// One line, whatever has been joined.
	text := strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
	if d.reported[name] != text {
		d.reported[name] = text
		logrus.Warnf("manifest %s: %s", name, text)
	}
}
