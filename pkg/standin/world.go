package standin

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// World is what replicas of one Dify share: database, Redis, file storage and
// secret key. It lives in memory and is bounded: of each kind of thing the newest
// few ten thousand are kept, of file contents the newest 256 MiB. Safe for concurrent use.
type World struct {
	id     string
	secret []byte // signs file links; immutable

	mu            sync.Mutex // guards everything below and all it points to
	endUsers      bounded[*endUser]
	conversations bounded[*conversation]
	messages      bounded[*message]
	tasks         bounded[*run] // by task id
	runs          bounded[*run] // chatflow and workflow runs, by run id
	forms         bounded[*form]
	files         bounded[*file]
	contentBytes  int64
	contentOrder  []*file
	annotations   bounded[*annotation]
	jobs          bounded[string] // annotation jobs: id to action
	feedbacks     []feedback
	active        map[string]int // requests per app id, as Redis counts them
	knowledge     knowledge
}

const (
	keepThings       = 20_000
	keepContentBytes = 256 << 20
)

// NewWorld returns an empty World with its own secret key.
func NewWorld() *World {
	w := &World{id: uuid.NewString(), secret: make([]byte, 32), active: make(map[string]int)}
	rand.Read(w.secret) // never fails, says crypto/rand
	return w
}

// bounded is a map that forgets its oldest entries beyond keepThings.
type bounded[V any] struct {
	entries map[string]V
	order   []string
}

func (b *bounded[V]) get(id string) (V, bool) {
	v, ok := b.entries[id]
	return v, ok
}

// put stores v and returns what had to be forgotten for it.
func (b *bounded[V]) put(id string, v V) (forgotten V, full bool) {
	if b.entries == nil {
		b.entries = make(map[string]V)
	}
	if _, known := b.entries[id]; !known {
		b.order = append(b.order, id)
	}
	b.entries[id] = v
	for len(b.order) > keepThings {
		oldest := b.order[0]
		b.order = b.order[1:]
		if old, ok := b.entries[oldest]; ok {
			delete(b.entries, oldest)
			return old, true
		}
	}
	return forgotten, false
}

// remove forgets an entry. Its place in the order is dropped when it comes to the front.
func (b *bounded[V]) remove(id string) { delete(b.entries, id) }

// newestFirst calls f from the newest entry on until it returns false.
func (b *bounded[V]) newestFirst(f func(V) bool) {
	for i := len(b.order) - 1; i >= 0; i-- {
		if v, ok := b.entries[b.order[i]]; ok && !f(v) {
			return
		}
	}
}

// endUser is one person of one app, as the API's clients name them.
type endUser struct {
	id, appID, name string
	created         time.Time
	conversations   []*conversation // oldest first
}

// anonymousUser is who a request belongs to that may leave the user out.
const anonymousUser = "DEFAULT-USER"

// endUser finds or creates the end user with that name in the app.
func (w *World) endUser(appID, name string) *endUser {
	id := derivedID(w.id, appID, name)
	w.mu.Lock()
	defer w.mu.Unlock()
	if u, ok := w.endUsers.get(id); ok {
		return u
	}
	u := &endUser{id: id, appID: appID, name: name, created: time.Now()}
	w.endUsers.put(id, u)
	return u
}

// enter counts a request against the app's cap. It reports false when max are active; max 0 is no cap.
func (w *World) enter(appID string, max int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if max > 0 && w.active[appID] >= max {
		return false
	}
	w.active[appID]++
	return true
}

func (w *World) leave(appID string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.active[appID]--; w.active[appID] == 0 {
		delete(w.active, appID)
	}
}

// signedFilePath is a link to a file as Dify signs it: by the secret key, so that
// only a replica can serve it.
func (w *World) signedFilePath(fileID string, now time.Time) string {
	nonce := hex.EncodeToString(randomBytes(16))
	at := fmt.Sprint(now.Unix())
	return "/files/" + fileID + "/file-preview?timestamp=" + at + "&nonce=" + nonce + "&sign=" + w.sign(fileID, at, nonce)
}

func (w *World) sign(fileID, at, nonce string) string {
	mac := hmac.New(sha256.New, w.secret)
	fmt.Fprintf(mac, "file-preview|%s|%s|%s", fileID, at, nonce)
	return base64.URLEncoding.EncodeToString(mac.Sum(nil))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// derivedID is a UUID that depends on its parts only.
func derivedID(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	id, _ := uuid.FromBytes(h.Sum(nil)[:16])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// parseUUID accepts what Python's uuid.UUID accepts and returns the usual spelling.
func parseUUID(s string) (string, bool) {
	id, err := uuid.Parse(s)
	return id.String(), err == nil
}
