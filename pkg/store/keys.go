package store

import (
	"fmt"
	"net/url"
	"strings"

	"difylb/pkg/lb"
)

// Keys, relative to the prefix and its slash.
//
//	apps/<app>                    an application's own fields
//	instances/<app>/<name>        an instance, with its position
//	tokens/<sha256>               a user token: its application, its position
//	settings                      what holds for the whole cluster
//	health/<app>/<name>           the elected prober's verdict
//	nodes/<role>/<id>             a live node, under its lease
//	access/<sha256>               an admin token
//	election/prober/<lease>       candidates, the oldest leads
//	meta/epoch, meta/cluster_key  made once
//	meta/config                   the last change: its number, who made it
//	meta/pending                  a staged change that is in force but not yet in its keys
//	history/<seq>                 one change, enough to undo it
//	staging/<id>/c/<n>            the chunks of a large change; history refers to them
//	staging/<id>/owner            leased, while the chunks are being written
//	staging/<id>/committed        the change took effect; says which
//	counters/<node>/<n>           folded statistics
const (
	dirApps      = "apps/"
	dirInstances = "instances/"
	dirTokens    = "tokens/"
	dirHealth    = "health/"
	dirNodes     = "nodes/"
	dirAccess    = "access/"
	dirElection  = "election/prober/"
	dirHistory   = "history/"
	dirStaging   = "staging/"
	dirCounters  = "counters/"
	keySettings  = "settings"
	keyEpoch     = "meta/epoch"
	keyCluster   = "meta/cluster_key"
	keyConfig    = "meta/config"
	keyPending   = "meta/pending"
)

func appKey(app string) string            { return dirApps + app }
func instanceKey(app, name string) string { return dirInstances + app + "/" + name }
func healthKey(app, name string) string   { return dirHealth + app + "/" + name }
func tokenKey(h lb.TokenHash) string      { return dirTokens + h.String() }
func accessKey(h lb.TokenHash) string     { return dirAccess + h.String() }
func nodeKey(role lb.Role, id string) string {
	return dirNodes + string(role) + "/" + url.PathEscape(id)
}
func historyKey(seq int64) string          { return fmt.Sprintf("%s%016d", dirHistory, seq) }
func chunkDir(id string) string            { return dirStaging + id + "/c/" }
func chunkKey(id string, n int) string     { return fmt.Sprintf("%s%06d", chunkDir(id), n) }
func ownerKey(id string) string            { return dirStaging + id + "/owner" }
func committedKey(id string) string        { return dirStaging + id + "/committed" }
func counterDir(node string) string        { return dirCounters + url.PathEscape(node) + "/" }
func counterKey(node string, n int) string { return fmt.Sprintf("%s%06d", counterDir(node), n) }

// mirrored says whether the mirror holds the key. The rest is bulk that only
// an lb-admin reads, when it needs it.
func mirrored(key string) bool {
	return !strings.HasPrefix(key, dirHistory) && !strings.HasPrefix(key, dirStaging) && !strings.HasPrefix(key, dirCounters)
}

// mirrorRanges are the spans of keys, relative to the prefix, between the
// bulk ones; "" as an end means the prefix's own end.
var mirrorRanges = [][2]string{
	{"", dirCounters},
	{"counters0", dirHistory}, // '0' follows '/'
	{"history0", dirStaging},
	{"staging0", ""},
}

// declares says whether the key is part of the configuration.
func declares(key string) bool {
	return key == keySettings || strings.HasPrefix(key, dirApps) ||
		strings.HasPrefix(key, dirInstances) || strings.HasPrefix(key, dirTokens)
}

// shownKey is the key as logs and faults may show it: of a token's hash only
// the part that is its public id.
func shownKey(key string) string {
	for _, dir := range []string{dirTokens, dirAccess} {
		if rest, ok := strings.CutPrefix(key, dir); ok && len(rest) > 16 {
			return dir + rest[:16]
		}
	}
	return key
}
