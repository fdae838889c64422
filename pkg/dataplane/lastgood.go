package dataplane

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/rs/zerolog"

	"difylb/pkg/document"
	"difylb/pkg/lb"
)

// lastGood keeps the last state that was put in force, so that a proxy can
// start while etcd is gone. Two generations: a file that a crash or a full
// disk spoilt leaves the one before.
type lastGood struct {
	dir string
	log zerolog.Logger
}

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
	lastGoodSummary
}

// lastGoodSummary tells states apart without reading the body. A file of an
// older release has none.
type lastGoodSummary struct {
	Epoch          string `json:"epoch,omitempty"`
	Revision       int64  `json:"revision,omitempty"`
	ConfigRevision int64  `json:"config_revision,omitempty"`
	Instances      int    `json:"instances,omitempty"`
	Tokens         int    `json:"tokens,omitempty"`
}

func summaryOf(snap *lb.Snapshot) lastGoodSummary {
	s := lastGoodSummary{Epoch: snap.Epoch, Revision: snap.Revision, ConfigRevision: snap.ConfigRevision}
	for _, app := range snap.Applications {
		s.Instances += len(app.Instances)
		s.Tokens += len(app.UserTokens)
	}
	return s
}

// lastGoodBody is a Snapshot as it is written. It holds secrets: the file has mode 0600.
type lastGoodBody struct {
	Epoch          string                           `json:"epoch"`
	Revision       int64                            `json:"revision"`
	ConfigRevision int64                            `json:"config_revision"`
	ChangeRevision int64                            `json:"change_revision,omitempty"`
	ClusterKey     string                           `json:"cluster_key"`
	Document       json.RawMessage                  `json:"document"`
	Health         map[string]map[string]lb.Verdict `json:"health,omitempty"`
	Nodes          []lb.Node                        `json:"nodes,omitempty"`
}

// save writes the snapshot: to a new file, synced, renamed over the old one,
// which stays as the generation before.
func (l *lastGood) save(snap *lb.Snapshot) error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	name := filepath.Join(l.dir, lastGoodName)
	tmp, err := os.CreateTemp(l.dir, lastGoodName+".new-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	err = writeLastGood(tmp, snap)
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

// writeLastGood writes the file's content, one application after the other: all
// of it at once would be several times as much memory as the snapshot itself.
func writeLastGood(file io.WriteSeeker, snap *lb.Snapshot) error {
	header := lastGoodHeader{lastGoodVersion, strings.Repeat("0", 2*sha256.Size), summaryOf(snap)}
	head, err := json.Marshal(header)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(file, 64<<10)
	if _, err := out.Write(append(head, '\n')); err != nil {
		return err
	}
	if err := writeBody(io.MultiWriter(out, sum), snap); err != nil {
		return err
	}
	if err := errors.Join(out.WriteByte('\n'), out.Flush()); err != nil {
		return err
	}
	header.SHA256 = hex.EncodeToString(sum.Sum(nil)) // as long as what stands there
	if head, err = json.Marshal(header); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	_, err = file.Write(head)
	return err
}

// writeBody writes a lastGoodBody.
func writeBody(w io.Writer, snap *lb.Snapshot) error {
	const mark = `"-"`
	frame, err := json.Marshal(lastGoodBody{
		Epoch: snap.Epoch, Revision: snap.Revision, ConfigRevision: snap.ConfigRevision, ChangeRevision: snap.ChangeRevision,
		ClusterKey: snap.ClusterKey.Reveal(), Document: json.RawMessage(mark), Health: snap.Health, Nodes: snap.Nodes,
	})
	if err != nil {
		return err
	}
	// Only the document itself can stand behind its name so: the others' quotes are escaped.
	before, after, found := bytes.Cut(frame, []byte(`"document":`+mark))
	if !found {
		return errors.New("the last good state has no place for its document")
	}
	settings, err := json.Marshal(snap.Settings)
	if err != nil {
		return err
	}
	piece := func(parts ...[]byte) error {
		for _, p := range parts {
			if _, err := w.Write(p); err != nil {
				return err
			}
		}
		return nil
	}
	if err := piece(before, []byte(`"document":{"settings":`), settings, []byte(`,"applications":{`)); err != nil {
		return err
	}
	for i, app := range snap.Applications {
		name, err := json.Marshal(app.Name)
		if err != nil {
			return err
		}
		raw, err := document.MarshalApplication(app, true)
		if err != nil {
			return fmt.Errorf("write application %q: %w", app.Name, err)
		}
		if i > 0 {
			name = append([]byte{','}, name...)
		}
		if err := piece(name, []byte{':'}, raw); err != nil {
			return err
		}
	}
	return piece([]byte("}}"), after)
}

// holds reports whether the newest generation on disk is, as far as its first
// line tells, of the same declarations as the snapshot.
func (l *lastGood) holds(snap *lb.Snapshot) bool {
	f, err := os.Open(filepath.Join(l.dir, lastGoodName))
	if err != nil {
		return false
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, 4<<10)).ReadBytes('\n')
	var h lastGoodHeader
	if err != nil || json.Unmarshal(line, &h) != nil || h.Version != lastGoodVersion {
		return false
	}
	want := summaryOf(snap)
	if h.Revision > want.Revision {
		return false
	}
	h.Revision = want.Revision
	return h.lastGoodSummary == want
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
			if len(faults) > 0 {
				l.log.Error().Err(errors.Join(faults...)).Int64("revision", snap.ConfigRevision).Msg("last good state damaged, taking the one before")
			}
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
		Epoch: b.Epoch, Revision: b.Revision, ConfigRevision: b.ConfigRevision, ChangeRevision: b.ChangeRevision,
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
