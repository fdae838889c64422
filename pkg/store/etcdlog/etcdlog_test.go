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
