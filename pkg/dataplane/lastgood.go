package dataplane

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"difylb/pkg/document"
	"difylb/pkg/lb"
)

// lastGood keeps the last state that was put in force, so that a proxy can
// start while etcd is gone. Two generations: a file that a crash or a full
// disk spoilt leaves the one before.
type lastGood struct{ dir string }

const (
	lastGoodName    = "last-good.json"
	lastGoodVersion = 1
)

var errNoLastGood = errors.New("there is no last good state on disk")

func newLastGood(dir string) *lastGood { return &lastGood{dir: dir} }

// lastGoodHeader is the file's first line. What follows is the body whose
// checksum it holds.
type lastGoodHeader struct {
	Version int    `json:"version"`
	SHA256  string `json:"sha256"`
}

// lastGoodBody is a Snapshot as it is written. It holds secrets: the file has mode 0600.
type lastGoodBody struct {
	Epoch          string                           `json:"epoch"`
	Revision       int64                            `json:"revision"`
	ConfigRevision int64                            `json:"config_revision"`
	ClusterKey     string                           `json:"cluster_key"`
	Document       json.RawMessage                  `json:"document"`
	Health         map[string]map[string]lb.Verdict `json:"health,omitempty"`
	Nodes          []lb.Node                        `json:"nodes,omitempty"`
}

// save writes the snapshot: to a new file, synced, renamed over the old one,
// which stays as the generation before.
func (l *lastGood) save(snap *lb.Snapshot) error {
	doc, err := document.MarshalCompact(snap.Document(), true)
	if err != nil {
		return err
	}
	body, err := json.Marshal(lastGoodBody{
		Epoch: snap.Epoch, Revision: snap.Revision, ConfigRevision: snap.ConfigRevision,
		ClusterKey: snap.ClusterKey.Reveal(), Document: doc, Health: snap.Health, Nodes: snap.Nodes,
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	head, err := json.Marshal(lastGoodHeader{lastGoodVersion, hex.EncodeToString(sum[:])})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	name := filepath.Join(l.dir, lastGoodName)
	tmp, err := os.CreateTemp(l.dir, lastGoodName+".new-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(bytes.Join([][]byte{head, body, nil}, []byte{'\n'}))
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(name, name+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(tmp.Name(), name); err != nil {
		return err
	}
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// load reads the newest generation that is whole. errNoLastGood: there is none.
func (l *lastGood) load() (*lb.Snapshot, error) {
	name := filepath.Join(l.dir, lastGoodName)
	var faults []error
	for _, file := range []string{name, name + ".1"} {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		var snap *lb.Snapshot
		if err == nil {
			snap, err = decodeLastGood(data)
		}
		if err == nil {
			return snap, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", file, err))
	}
	if len(faults) == 0 {
		return nil, errNoLastGood
	}
	return nil, errors.Join(faults...)
}

func decodeLastGood(data []byte) (*lb.Snapshot, error) {
	head, body, found := bytes.Cut(data, []byte{'\n'})
	if !found {
		return nil, errors.New("it is cut off")
	}
	body = bytes.TrimSuffix(body, []byte{'\n'})
	var h lastGoodHeader
	if err := json.Unmarshal(head, &h); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if h.Version != lastGoodVersion {
		return nil, fmt.Errorf("version %d, this program reads version %d", h.Version, lastGoodVersion)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != h.SHA256 {
		return nil, errors.New("the checksum does not fit: it is cut off or was changed")
	}
	var b lastGoodBody
	if err := json.Unmarshal(body, &b); err != nil {
		return nil, err
	}
	doc, err := document.Parse(b.Document)
	if err != nil {
		return nil, err
	}
	snap := &lb.Snapshot{
		Epoch: b.Epoch, Revision: b.Revision, ConfigRevision: b.ConfigRevision,
		ClusterKey: lb.Secret(b.ClusterKey), Health: b.Health, Nodes: b.Nodes,
	}
	if doc.Settings != nil {
		snap.Settings = *doc.Settings
	}
	for name, app := range doc.Applications {
		if fs := app.Resolve(nil, name); len(fs) > 0 {
			return nil, fs
		}
		snap.Applications = append(snap.Applications, app)
	}
	sort.Slice(snap.Applications, func(i, j int) bool { return snap.Applications[i].Name < snap.Applications[j].Name })
	return snap, nil
}
