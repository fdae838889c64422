package daemon

import (
	"fmt"
	"strings"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/grpclog"
)

// RouteGRPCLog sends what gRPC logs of itself to the process's log, as debug:
// what matters of it the clients and servers here report themselves. Call it
// once, before anything of gRPC is used; gRPC keeps one logger per process.
func RouteGRPCLog(log zerolog.Logger) {
	grpclog.SetLoggerV2(grpcLogger{log.With().Str("component", "grpc").Logger()})
}

type grpcLogger struct{ log zerolog.Logger }

func (l grpcLogger) debug(args ...any) { l.log.Debug().Msg(strings.TrimSpace(fmt.Sprintln(args...))) }
func (l grpcLogger) debugf(format string, args ...any) {
	l.log.Debug().Msg(fmt.Sprintf(format, args...))
}

func (l grpcLogger) Info(args ...any)                    {}
func (l grpcLogger) Infoln(args ...any)                  {}
func (l grpcLogger) Infof(string, ...any)                {}
func (l grpcLogger) Warning(args ...any)                 { l.debug(args...) }
func (l grpcLogger) Warningln(args ...any)               { l.debug(args...) }
func (l grpcLogger) Warningf(format string, args ...any) { l.debugf(format, args...) }
func (l grpcLogger) Error(args ...any)                   { l.debug(args...) }
func (l grpcLogger) Errorln(args ...any)                 { l.debug(args...) }
func (l grpcLogger) Errorf(format string, args ...any)   { l.debugf(format, args...) }
func (l grpcLogger) Fatal(args ...any)                   { panic(fmt.Sprintln(args...)) }
func (l grpcLogger) Fatalln(args ...any)                 { panic(fmt.Sprintln(args...)) }
func (l grpcLogger) Fatalf(format string, args ...any)   { panic(fmt.Sprintf(format, args...)) }
func (l grpcLogger) V(int) bool                          { return false }
