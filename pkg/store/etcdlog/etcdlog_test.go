package etcdlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestNew_CarriesLevelMessageAndFields(t *testing.T) {
	var out bytes.Buffer
	log := New(zerolog.New(&out), zapcore.InfoLevel, nil).Named("raft").With(zap.String("member", "a"))
	log.Debug("dropped")
	log.Warn("slow disk", zap.Int("ms", 7), zap.Error(errors.New("x")))
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%s: %v", out.String(), err)
	}
	for k, want := range map[string]any{"level": "warn", "message": "slow disk", "member": "a", "ms": 7.0, "error": "x", "logger": "raft"} {
		if line[k] != want {
			t.Errorf("%s is %v, want %v", k, line[k], want)
		}
	}
}

func TestNew_FatalPanicsInsteadOfExiting(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	New(zerolog.Nop(), zapcore.InfoLevel, nil).Fatal("the end")
}

func TestNew_DemotesWhatItIsToldTo(t *testing.T) {
	var out bytes.Buffer
	log := New(zerolog.New(&out), zapcore.InfoLevel, func(m string) bool { return m == "known" })
	log.Error("known")
	log.Error("new")
	if s := out.String(); !strings.Contains(s, `"level":"debug","message":"known"`) || !strings.Contains(s, `"level":"error","message":"new"`) {
		t.Error(s)
	}
}

func TestNew_ShowsNoWholeDigest(t *testing.T) {
	const hash = "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789abcdef"
	var out bytes.Buffer
	log := New(zerolog.New(&out), zapcore.InfoLevel, nil).With(zap.String("with", hash))
	log.Warn("about "+hash,
		zap.String("request content", `compare:<key:"/lb/tokens/`+hash+`" > success:<request_put:<key:"/lb/access/`+hash+`" value_size:9 > >`),
		zap.Error(errors.New("key "+hash)), zap.Strings("keys", []string{hash}), zap.ByteString("bytes", []byte(hash)),
		zap.Any("any", map[string]any{"list": []any{hash}}), zap.Dict("dict", zap.String("key", hash)), zap.String("short", hash[:63]))
	s := out.String()
	if strings.Contains(s, hash) {
		t.Errorf("a whole digest: %s", s)
	}
	if n := strings.Count(s, hash[:16]+"…"); n != 9 {
		t.Errorf("%d public ids, want 9: %s", n, s)
	}
	if !strings.Contains(s, `"short":"`+hash[:63]+`"`) {
		t.Errorf("what is no digest was changed: %s", s)
	}
}
