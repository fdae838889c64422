package route

import (
	"bytes"
	"encoding/binary"
	"slices"

	"difylb/pkg/lb"
)

// tokenShards is the number of parts of the token index. Editing one part
// copies it, so a change costs what it touches: with 100,000 tokens a part
// holds 24.
const tokenShards = 4096

// tokenIndex finds the slot of the application that a token opens. It is
// persistent: an edit shares all parts that it does not touch. The zero value
// is empty.
type tokenIndex struct {
	shards *[tokenShards][]tokenEntry // each sorted by hash; nil while empty
}

type tokenEntry struct {
	token *lb.UserToken
	slot  int32
	// key is the hash's second 8 bytes: the first select the shard, and two
	// tokens that agree in these are told apart by the hash itself.
	key uint64
}

func shardOf(h *lb.TokenHash) int { return int(binary.BigEndian.Uint16(h[:])) % tokenShards }
func keyOf(h *lb.TokenHash) uint64 {
	return binary.BigEndian.Uint64(h[8:])
}

// find returns the entry, or nil. A linear search: the parts are small, and
// sorted keys let it end early.
func (x tokenIndex) find(h lb.TokenHash) *tokenEntry {
	if x.shards == nil {
		return nil
	}
	shard, key := x.shards[shardOf(&h)], keyOf(&h)
	for i := range shard {
		e := &shard[i]
		if e.key < key {
			continue
		}
		if e.key > key {
			return nil
		}
		if e.token.SHA256 == h {
			return e
		}
	}
	return nil
}

// tokenEdit changes an index by copying the parts it touches.
type tokenEdit struct {
	from, to *[tokenShards][]tokenEntry
	own      map[int]bool // shards already copied
}

func (x tokenIndex) edit() *tokenEdit { return &tokenEdit{from: x.shards, to: x.shards} }

func (e *tokenEdit) shard(h *lb.TokenHash) *[]tokenEntry {
	if e.to == e.from { // first change
		e.to = new([tokenShards][]tokenEntry)
		if e.from != nil {
			*e.to = *e.from
		}
		e.own = make(map[int]bool)
	}
	i := shardOf(h)
	if !e.own[i] {
		e.own[i] = true
		e.to[i] = slices.Clone(e.to[i])
	}
	return &e.to[i]
}

func search(shard []tokenEntry, h *lb.TokenHash) (int, bool) {
	return slices.BinarySearchFunc(shard, h, func(e tokenEntry, h *lb.TokenHash) int {
		if k := keyOf(h); e.key != k {
			if e.key < k {
				return -1
			}
			return 1
		}
		return bytes.Compare(e.token.SHA256[:], h[:])
	})
}

func (e *tokenEdit) remove(tokens []lb.UserToken) {
	for i := range tokens {
		shard := e.shard(&tokens[i].SHA256)
		if at, ok := search(*shard, &tokens[i].SHA256); ok {
			*shard = slices.Delete(*shard, at, at+1)
		}
	}
}

func (e *tokenEdit) add(tokens []lb.UserToken, slot int) {
	for i := range tokens {
		h := &tokens[i].SHA256
		entry := tokenEntry{token: &tokens[i], slot: int32(slot), key: keyOf(h)}
		shard := e.shard(h)
		at, ok := search(*shard, h)
		if ok {
			(*shard)[at] = entry
			continue
		}
		*shard = slices.Insert(*shard, at, entry)
	}
}

func (e *tokenEdit) done() tokenIndex { return tokenIndex{shards: e.to} }
