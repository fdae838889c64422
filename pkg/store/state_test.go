package store

import (
	"fmt"
	"maps"
	"testing"

	"difylb/pkg/lb"
)

func TestState_GivesRoomBackWhenMuchIsGone(t *testing.T) {
	st := newState()
	apply := func(i int, deleted bool) {
		app := fmt.Sprintf("app-%d", i)
		token := lb.NewUserToken(lb.Secret("usertoken--of-"+app), "", false)
		for key, raw := range map[string][]byte{
			appKey(app):            encodeApplication(lb.NewApplication(app)),
			tokenKey(token.SHA256): encodeToken(app, &token, 0),
		} {
			st.applyLocked(event{key: key, raw: raw, deleted: deleted, mod: int64(i + 1)})
		}
	}
	const many, left = 5000, 10
	for i := range many {
		apply(i, false)
	}
	st.trimLocked()
	full := st.buildLocked(nil, "/p/", 1)
	for i := left; i < many; i++ {
		apply(i, true)
	}
	objects := maps.Clone(st.objects)
	st.trimLocked()
	if st.most != 2*left || !maps.Equal(objects, st.objects) || len(st.apps) != left || len(st.owners) != left {
		t.Errorf("most %d, %d objects, %d applications, %d owners", st.most, len(st.objects), len(st.apps), len(st.owners))
	}
	// What was waiting to be looked at still is.
	snap := st.buildLocked(full, "/p/", 2)
	if len(snap.Applications) != left || len(snap.Faults) != 0 {
		t.Errorf("%d applications, faults %v", len(snap.Applications), snap.Faults)
	}
	if st.trimLocked(); st.most != 2*left {
		t.Errorf("most %d after nothing", st.most)
	}
}
