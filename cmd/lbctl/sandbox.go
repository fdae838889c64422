package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	lua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
	"github.com/yuin/gopher-lua/parse"
)

// The sandbox runs a configuration that somebody else wrote. It reaches no
// file, process or network, and cannot hang, fill the memory or overflow the
// stack: every way to make a long text or a large table goes through a
// function of ours that keeps account, and between two instructions time and
// memory are looked at.
const (
	sandboxTime      = 2 * time.Second
	maxLuaFileBytes  = 1 << 20
	maxLuaNesting    = 200
	maxLuaTextBytes  = 1 << 20  // of one text
	maxLuaTotalBytes = 32 << 20 // of all texts that are made
	maxLuaHeapBytes  = 256 << 20
	maxLuaArray      = 1 << 16 // a gap in a list is filled up to its end
	maxLuaValues     = 200_000 // in the result
	maxLuaDepth      = 16      // of the result
	maxLuaStack      = 200
	luaRegistry      = 1 << 10
	maxLuaRegistry   = 1 << 15
	heapLookEvery    = 64 // instructions
)

// The globals that stand in for the operator "..", and around calls in tail
// position. No program can write the names, and none can reach the table of
// globals.
const (
	concatName = "\x00concat"
	valuesName = "\x00values"
)

// luaConfig is what a configuration returned, or left in globals.
type luaConfig struct {
	result  lua.LValue // nil value when the file returns nothing
	globals func(name string) lua.LValue
	close   func()
}

// runLua runs a configuration, until the context's deadline or, where it has
// none, for sandboxTime. The caller closes what it returns.
func runLua(ctx context.Context, name string, source []byte) (*luaConfig, error) {
	if len(source) > maxLuaFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxLuaFileBytes)
	}
	proto, err := compileLua(name, source)
	if err != nil {
		return nil, err
	}
	// Process-wide, and only used here: lbctl runs no other Lua.
	lua.MaxArrayIndex = maxLuaArray
	limit, cancel := sandboxTime, context.CancelFunc(func() {})
	if d, ok := ctx.Deadline(); ok {
		limit = time.Until(d)
	} else {
		ctx, cancel = context.WithTimeout(ctx, limit)
	}
	l := lua.NewState(lua.Options{
		SkipOpenLibs: true, CallStackSize: maxLuaStack, RegistrySize: luaRegistry,
		RegistryMaxSize: maxLuaRegistry, RegistryGrowStep: 1 << 10,
	})
	out := &luaConfig{globals: l.GetGlobal, close: func() { l.Close(); cancel() }}
	s := &sandbox{Context: ctx}
	s.heap = s.heapBytes()
	s.open(l)
	l.SetContext(s)
	l.Push(l.NewFunctionFromProto(proto))
	if err := callLua(l); err != nil {
		if s.why != nil {
			err = s.why
		} else if ctx.Err() != nil {
			err = fmt.Errorf("it did not end within %s", limit.Round(time.Millisecond))
		}
		out.close()
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	out.result = l.Get(-1)
	return out, nil
}

// callLua calls the function on the stack. The interpreter panics where its
// own bounds are broken outside of a protected call.
func callLua(l *lua.LState) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it breaks a bound of the sandbox: %v", p)
		}
	}()
	err = l.PCall(0, 1, nil)
	var api *lua.ApiError
	if errors.As(err, &api) {
		// Without the stack trace, which means nothing to who reads it.
		return errors.New(api.Object.String())
	}
	return err
}

// compileLua parses, bounds the nesting before anything recurses into it, and
// rewrites what has no bound.
func compileLua(name string, source []byte) (proto *lua.FunctionProto, err error) {
	defer func() {
		if p := recover(); p != nil {
			proto, err = nil, fmt.Errorf("%s is not Lua that can be read: %v", name, p)
		}
	}()
	if bytes.HasPrefix(source, []byte("\x1bLua")) || bytes.HasPrefix(source, []byte("\x1bLJ")) {
		return nil, fmt.Errorf("%s is compiled Lua; give the source", name)
	}
	source = bytes.TrimPrefix(source, []byte("\xef\xbb\xbf"))
	chunk, err := parse.Parse(bytes.NewReader(source), name)
	if err != nil {
		return nil, fmt.Errorf("%s is not Lua: %s", name, strings.TrimSpace(err.Error()))
	}
	r := &rewriter{}
	r.stmts(chunk, 0)
	if r.err != nil {
		return nil, fmt.Errorf("%s: %w", name, r.err)
	}
	return lua.Compile(chunk, name)
}

// sandbox is the interpreter's context: it is asked before every instruction
// whether to go on, in the interpreter's own goroutine.
type sandbox struct {
	context.Context
	steps  int
	sample [1]metrics.Sample
	heap   uint64 // of the process when it began
	texts  int    // bytes of texts made so far
	why    error  // set once a bound is broken
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Done implements context.Context.
func (s *sandbox) Done() <-chan struct{} {
	if s.steps++; s.steps%heapLookEvery == 0 && s.why == nil {
		if now := s.heapBytes(); now > s.heap+maxLuaHeapBytes {
			s.why = fmt.Errorf("it uses more than %d MiB of memory", maxLuaHeapBytes>>20)
		}
	}
	if s.why != nil {
		return closed
	}
	return s.Context.Done()
}

// Err implements context.Context.
func (s *sandbox) Err() error {
	if s.why != nil {
		return s.why
	}
	return s.Context.Err()
}

func (s *sandbox) heapBytes() uint64 {
	s.sample[0].Name = "/memory/classes/heap/objects:bytes"
	metrics.Read(s.sample[:])
	return s.sample[0].Value.Uint64()
}

// text accounts for a text before it is made.
func (s *sandbox) text(l *lua.LState, bytes int) {
	if bytes > maxLuaTextBytes || bytes < 0 {
		s.why = fmt.Errorf("it makes a text of more than %d bytes", maxLuaTextBytes)
	} else if s.texts += bytes; s.texts > maxLuaTotalBytes {
		s.why = fmt.Errorf("it makes more than %d MiB of texts", maxLuaTotalBytes>>20)
	}
	if s.why != nil {
		l.RaiseError("%s", s.why)
	}
}

// open offers what a configuration may need: the language itself, and of the
// libraries what can be bounded.
func (s *sandbox) open(l *lua.LState) {
	for _, lib := range []struct {
		name string
		open lua.LGFunction
	}{{lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}, {lua.StringLibName, lua.OpenString}, {lua.MathLibName, lua.OpenMath}} {
		l.Push(l.NewFunction(lib.open))
		l.Push(lua.LString(lib.name))
		l.Call(1, 0)
	}
	absent := func(what string) lua.LGFunction {
		return func(l *lua.LState) int {
			l.RaiseError("%s is not available: a configuration is read in a sandbox", what)
			return 0
		}
	}
	for _, name := range []string{"dofile", "load", "loadfile", "loadstring", "require", "module", "getfenv", "setfenv", "getmetatable", "setmetatable", "newproxy", "_printregs"} {
		l.SetGlobal(name, l.NewFunction(absent(name)))
	}
	for _, name := range []string{"_G", "_GOPHER_LUA_VERSION", "collectgarbage"} {
		l.SetGlobal(name, lua.LNil)
	}
	nothing := l.NewFunction(func(*lua.LState) int { return 0 })
	l.SetGlobal("print", nothing)
	for _, name := range []string{"io", "os", "package", "debug", "coroutine", "channel"} {
		lib, meta := l.NewTable(), l.NewTable()
		refuse := func(l *lua.LState) int {
			absent(name + "." + lua.LVAsString(l.Get(2)))(l)
			return 0
		}
		meta.RawSetString("__index", l.NewFunction(refuse))
		meta.RawSetString("__newindex", l.NewFunction(refuse))
		lib.Metatable = meta
		l.SetGlobal(name, lib)
	}
	str := l.GetGlobal(lua.StringLibName).(*lua.LTable)
	for _, name := range []string{"dump", "find", "match", "gmatch", "gfind", "gsub"} {
		// The time of a pattern has no bound, and nothing stops one half-way.
		str.RawSetString(name, l.NewFunction(absent("string."+name)))
	}
	str.RawSetString("rep", l.NewFunction(s.rep))
	str.RawSetString("format", l.NewFunction(s.format))
	for _, name := range []string{"upper", "lower", "reverse", "sub", "char"} {
		str.RawSetString(name, l.NewFunction(s.accounted(str.RawGetString(name).(*lua.LFunction).GFunction)))
	}
	tab := l.GetGlobal(lua.TabLibName).(*lua.LTable)
	tab.RawSetString("concat", l.NewFunction(s.join))
	l.SetGlobal(concatName, l.NewFunction(s.concat))
	l.SetGlobal(valuesName, l.NewFunction(func(l *lua.LState) int { return l.GetTop() }))
	// What configurations for OpenResty mention of it.
	ngx := l.NewTable()
	for i, level := range []string{"STDERR", "EMERG", "ALERT", "CRIT", "ERR", "WARN", "NOTICE", "INFO", "DEBUG"} {
		ngx.RawSetString(level, lua.LNumber(i))
	}
	ngx.RawSetString("log", nothing)
	ngx.RawSetString("null", lua.LNil)
	l.SetGlobal("ngx", ngx)
}

// accounted wraps a function whose result is no longer than its first argument.
func (s *sandbox) accounted(f lua.LGFunction) lua.LGFunction {
	return func(l *lua.LState) int {
		s.text(l, max(len(l.Get(1).String()), l.GetTop()))
		return f(l)
	}
}

func (s *sandbox) concat(l *lua.LState) int {
	a, aok := luaText(l.Get(1))
	b, bok := luaText(l.Get(2))
	if !aok || !bok {
		bad := l.Get(1)
		if aok {
			bad = l.Get(2)
		}
		l.RaiseError("attempt to concatenate a %s value", bad.Type())
	}
	s.text(l, len(a)+len(b))
	l.Push(lua.LString(a + b))
	return 1
}

func luaText(v lua.LValue) (string, bool) {
	switch v.Type() {
	case lua.LTString, lua.LTNumber:
		return v.String(), true
	}
	return "", false
}

func (s *sandbox) rep(l *lua.LState) int {
	text, n := l.CheckString(1), l.CheckInt(2)
	if n < 0 || text == "" {
		n = 0
	}
	if n > maxLuaTextBytes {
		n = maxLuaTextBytes + 1 // so that the product does not overflow
	}
	s.text(l, len(text)*n)
	l.Push(lua.LString(strings.Repeat(text, n)))
	return 1
}

// format offers the directives of string.format without width tricks: a width
// or precision has at most two digits, as in Lua itself.
func (s *sandbox) format(l *lua.LState) int {
	form := l.CheckString(1)
	s.text(l, len(form))
	var out strings.Builder
	arg := 1
	for i := 0; i < len(form); i++ {
		if form[i] != '%' {
			out.WriteByte(form[i])
			continue
		}
		start := i
		for i++; i < len(form) && strings.IndexByte("-+ #0123456789.", form[i]) >= 0; i++ {
		}
		if i == len(form) {
			l.RaiseError("string.format: the format ends in %%")
		}
		spec, verb := form[start:i], form[i]
		if verb == '%' {
			out.WriteByte('%')
			continue
		}
		if wide(spec) {
			l.RaiseError("string.format: a width has at most two digits")
		}
		arg++
		var piece string
		switch verb {
		case 'd', 'i':
			piece = fmt.Sprintf(spec+"d", int64(l.CheckNumber(arg)))
		case 'u':
			piece = fmt.Sprintf(spec+"d", uint64(l.CheckNumber(arg)))
		case 'x', 'X', 'o':
			piece = fmt.Sprintf(spec+string(verb), int64(l.CheckNumber(arg)))
		case 'c':
			piece = string([]byte{byte(l.CheckInt(arg))})
		case 'e', 'E', 'f', 'g', 'G':
			piece = fmt.Sprintf(spec+string(verb), float64(l.CheckNumber(arg)))
		case 's', 'q':
			v := l.CheckAny(arg).String()
			s.text(l, out.Len()+len(v))
			piece = fmt.Sprintf(spec+string(verb), v)
		default:
			l.RaiseError("string.format: there is no directive %%%c", verb)
		}
		s.text(l, out.Len()+len(piece))
		s.texts -= out.Len() // counted before
		out.WriteString(piece)
	}
	l.Push(lua.LString(out.String()))
	return 1
}

// wide reports whether a width or precision has more than two digits.
func wide(spec string) bool {
	n := 0
	for _, c := range spec {
		if c >= '0' && c <= '9' {
			n++
		} else {
			n = 0
		}
		if n > 2 {
			return true
		}
	}
	return false
}

// join is table.concat.
func (s *sandbox) join(l *lua.LState) int {
	t, sep := l.CheckTable(1), l.OptString(2, "")
	i, j := l.OptInt(3, 1), l.OptInt(4, t.Len())
	if j-i >= maxLuaArray {
		l.RaiseError("table.concat: more than %d values", maxLuaArray)
	}
	var parts []string
	size := 0
	for ; i <= j; i++ {
		v, ok := luaText(t.RawGetInt(i))
		if !ok {
			l.RaiseError("table.concat: value %d is neither text nor number", i)
		}
		if size += len(v) + len(sep); size > maxLuaTextBytes {
			s.text(l, size)
		}
		parts = append(parts, v)
	}
	s.text(l, size)
	l.Push(lua.LString(strings.Join(parts, sep)))
	return 1
}

// rewriter replaces "a .. b" by a call of concatName, takes calls out of tail
// position, and finds nesting that is too deep for what recurses: the parser
// keeps a stack of its own, the compiler does not.
type rewriter struct{ err error }

func (r *rewriter) deep(depth, line int) bool {
	if r.err == nil && depth > maxLuaNesting {
		r.err = fmt.Errorf("line %d: nested deeper than %d levels", line, maxLuaNesting)
	}
	return r.err != nil
}

func (r *rewriter) stmts(list []ast.Stmt, depth int) {
	for _, s := range list {
		if r.deep(depth, s.Line()) {
			return
		}
		switch s := s.(type) {
		case *ast.AssignStmt:
			r.exprs(s.Lhs, depth)
			r.exprs(s.Rhs, depth)
		case *ast.LocalAssignStmt:
			r.exprs(s.Exprs, depth)
		case *ast.FuncCallStmt:
			s.Expr = r.expr(s.Expr, depth)
		case *ast.DoBlockStmt:
			r.stmts(s.Stmts, depth+1)
		case *ast.WhileStmt:
			s.Condition = r.expr(s.Condition, depth)
			r.stmts(s.Stmts, depth+1)
		case *ast.RepeatStmt:
			s.Condition = r.expr(s.Condition, depth)
			r.stmts(s.Stmts, depth+1)
		case *ast.IfStmt:
			s.Condition = r.expr(s.Condition, depth)
			r.stmts(s.Then, depth+1)
			r.stmts(s.Else, depth+1)
		case *ast.NumberForStmt:
			s.Init, s.Limit, s.Step = r.expr(s.Init, depth), r.expr(s.Limit, depth), r.expr(s.Step, depth)
			r.stmts(s.Stmts, depth+1)
		case *ast.GenericForStmt:
			r.exprs(s.Exprs, depth)
			r.stmts(s.Stmts, depth+1)
		case *ast.FuncDefStmt:
			s.Name.Func, s.Name.Receiver = r.expr(s.Name.Func, depth), r.expr(s.Name.Receiver, depth)
			r.stmts(s.Func.Stmts, depth+1)
		case *ast.ReturnStmt:
			r.exprs(s.Exprs, depth)
			// A chain of tail calls has no bound on the stack, but the
			// interpreter writes a line for each of them into its traces.
			if len(s.Exprs) == 1 {
				if call, ok := s.Exprs[0].(*ast.FuncCallExpr); ok && !call.AdjustRet {
					s.Exprs[0] = callOf(valuesName, call, call)
				}
			}
		case *ast.BreakStmt, *ast.LabelStmt, *ast.GotoStmt:
		default:
			r.err = fmt.Errorf("line %d: a statement (%T) that an import does not know", s.Line(), s)
		}
	}
}

func (r *rewriter) exprs(list []ast.Expr, depth int) {
	for i := range list {
		list[i] = r.expr(list[i], depth)
	}
}

func (r *rewriter) expr(e ast.Expr, depth int) ast.Expr {
	if e == nil || r.deep(depth, e.Line()) {
		return e
	}
	depth++
	switch e := e.(type) {
	case *ast.TrueExpr, *ast.FalseExpr, *ast.NilExpr, *ast.NumberExpr, *ast.StringExpr, *ast.IdentExpr, *ast.Comma3Expr:
	case *ast.AttrGetExpr:
		e.Object, e.Key = r.expr(e.Object, depth), r.expr(e.Key, depth)
	case *ast.TableExpr:
		for _, f := range e.Fields {
			f.Key, f.Value = r.expr(f.Key, depth), r.expr(f.Value, depth)
		}
	case *ast.FuncCallExpr:
		e.Func, e.Receiver = r.expr(e.Func, depth), r.expr(e.Receiver, depth)
		r.exprs(e.Args, depth)
	case *ast.LogicalOpExpr:
		e.Lhs, e.Rhs = r.expr(e.Lhs, depth), r.expr(e.Rhs, depth)
	case *ast.RelationalOpExpr:
		e.Lhs, e.Rhs = r.expr(e.Lhs, depth), r.expr(e.Rhs, depth)
	case *ast.ArithmeticOpExpr:
		e.Lhs, e.Rhs = r.expr(e.Lhs, depth), r.expr(e.Rhs, depth)
	case *ast.UnaryMinusOpExpr:
		e.Expr = r.expr(e.Expr, depth)
	case *ast.UnaryNotOpExpr:
		e.Expr = r.expr(e.Expr, depth)
	case *ast.UnaryLenOpExpr:
		e.Expr = r.expr(e.Expr, depth)
	case *ast.FunctionExpr:
		r.stmts(e.Stmts, depth)
	case *ast.StringConcatOpExpr:
		// AdjustRet keeps a ... or a call at the end from bringing in more
		// than the one value that each side of the operator is.
		call := callOf(concatName, e, one(r.expr(e.Lhs, depth)), one(r.expr(e.Rhs, depth)))
		call.AdjustRet = true
		return call
	default:
		r.err = fmt.Errorf("line %d: an expression (%T) that an import does not know", e.Line(), e)
	}
	return e
}

// callOf makes a call of one of our globals, at the place of an expression.
func callOf(name string, at ast.PositionHolder, args ...ast.Expr) *ast.FuncCallExpr {
	ident := &ast.IdentExpr{Value: name}
	call := &ast.FuncCallExpr{Func: ident, Args: args}
	for _, n := range []ast.PositionHolder{ident, call} {
		n.SetLine(at.Line())
		n.SetLastLine(at.LastLine())
	}
	return call
}

// one makes an expression yield exactly one value.
func one(e ast.Expr) ast.Expr {
	switch e := e.(type) {
	case *ast.FuncCallExpr:
		e.AdjustRet = true
	case *ast.Comma3Expr:
		e.AdjustRet = true
	}
	return e
}

// luaValue is a value of the result: a text, a number, true or false, or a table.
type luaValue struct {
	text   string
	number float64
	truth  bool
	kind   lua.LValueType
	keys   []string // of a table, apart from its list, in the order of the file
	fields map[string]*luaValue
	list   []*luaValue
}

// reader turns Lua values into ours, with bounds on how many and how deep.
type reader struct{ left int }

func readLua(v lua.LValue) (*luaValue, error) {
	r := &reader{left: maxLuaValues}
	return r.read(v, 0)
}

func (r *reader) read(v lua.LValue, depth int) (*luaValue, error) {
	if r.left--; r.left < 0 {
		return nil, fmt.Errorf("the configuration holds more than %d values", maxLuaValues)
	}
	if depth > maxLuaDepth {
		return nil, fmt.Errorf("the configuration is nested deeper than %d levels, or holds itself", maxLuaDepth)
	}
	out := &luaValue{kind: v.Type()}
	switch v := v.(type) {
	case lua.LString:
		out.text = string(v)
	case lua.LNumber:
		out.number = float64(v)
		out.text = numberText(out.number)
	case lua.LBool:
		out.truth = bool(v)
		out.text = strconv.FormatBool(out.truth)
	case *lua.LTable:
		return out, r.table(v, out, depth)
	}
	return out, nil
}

func (r *reader) table(t *lua.LTable, out *luaValue, depth int) error {
	out.fields = make(map[string]*luaValue)
	var err error
	n := t.Len()
	for i := 1; i <= n && err == nil; i++ {
		var item *luaValue
		if item, err = r.read(t.RawGetInt(i), depth+1); err == nil {
			out.list = append(out.list, item)
		}
	}
	for key, v := t.Next(lua.LNil); key != lua.LNil && err == nil; key, v = t.Next(key) {
		if i, ok := key.(lua.LNumber); ok && float64(i) == math.Trunc(float64(i)) && int(i) >= 1 && int(i) <= n {
			continue
		}
		var item *luaValue
		if item, err = r.read(v, depth+1); err == nil {
			name := key.String()
			out.keys = append(out.keys, name)
			out.fields[name] = item
		}
	}
	return err
}

func numberText(f float64) string {
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return strconv.FormatInt(int64(f), 10)
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}
