package dify

import (
	"strings"
	"testing"
)

func TestErrorCode_Bodies(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{"compact", `{"code":"not_found","message":"Conversation Not Exists.","status":404}`, "not_found"},
		{"spaced", "{\"code\": \"invalid_param\", \"message\": \"Arg user must be provided.\", \"params\": \"user\", \"status\": 400}\n", "invalid_param"},
		{"last", `{"status":400,"message":"code\":\"no\"","params":{"code":"inner"},"list":["code","x"],"code":"unknown"}`, "unknown"},
		{"new code", `{"code":"something_new"}`, "something_new"},
		{"escaped", `{"c\u006fde":"not\u005ffound"}`, "not_found"},
		{"byte order mark", "\ufeff" + `{"code":"forbidden"}`, "forbidden"},
		{"cut off behind it", `{"code":"forbidden","mess`, "forbidden"},
		{"cut off inside", `{"code":"forbi`, ""},
		{"repeated", `{"code":null,"code":"","code":"a","code":"b"}`, "a"},
		{"number", `{"code":404}`, ""},
		{"object", `{"code":{"code":"x"}}`, ""},
		{"array", `[{"code":"x"}]`, ""},
		{"string", `"code"`, ""},
		{"page", `<html><script>var x = {"code":"x"}</script></html>`, ""},
		{"white space inside", `{"code":"a b"}`, ""},
		{"line feed inside", `{"code":"a\nb"}`, ""},
		{"beyond ASCII", `{"code":"é"}`, ""},
		{"as long as may be", `{"code":"` + strings.Repeat("x", MaxCodeLength) + `"}`, strings.Repeat("x", MaxCodeLength)},
		{"too long", `{"code":"` + strings.Repeat("x", MaxCodeLength+1) + `"}`, ""},
		{"behind much", `{"message":"` + strings.Repeat(" ", maxEnvelopeBytes) + `","code":"x"}`, ""},
		{"empty", "", ""},
		{"no member", "{}", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := ErrorCode([]byte(c.body)); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestErrorCode_DoesNotAllocate(t *testing.T) {
	for _, body := range []string{
		`{"code":"too_many_requests","message":"Too many requests.","status":429}`,
		`{"message":"nothing"}`, `<html>`,
	} {
		b := []byte(body)
		if n := testing.AllocsPerRun(100, func() { ErrorCode(b) }); n != 0 {
			t.Errorf("%s: %v allocations", body, n)
		}
	}
}

func TestVerdicts_OfStatusAndCode(t *testing.T) {
	for _, c := range []struct {
		status                int
		code                  string
		busy, provider, token bool
	}{
		{429, "too_many_requests", true, false, false},
		{429, "rate_limit_error", false, true, false},
		{429, "", false, false, false},
		{503, "too_many_requests", false, false, false},
		{400, "provider_not_initialize", false, true, false},
		{400, "provider_quota_exceeded", false, true, false},
		{400, "model_currently_not_support", false, true, false},
		{400, "completion_request_error", false, true, false},
		{500, "completion_request_error", false, false, false},
		{400, "invalid_param", false, false, false},
		{400, "app_unavailable", false, false, false},
		{400, "", false, false, false},
		{401, "unauthorized", false, false, true},
		{401, "", false, false, true},
		{403, "", false, false, true},
		{403, "forbidden", false, false, true},
		{403, "app_api_disabled", false, false, true},
		{403, "file_access_denied", false, false, false},
		{403, "app_suggested_questions_after_answer_disabled", false, false, false},
		{404, "not_found", false, false, false},
		{200, "", false, false, false},
	} {
		if got := Busy(c.status, c.code); got != c.busy {
			t.Errorf("Busy(%d, %q) = %v", c.status, c.code, got)
		}
		if got := ProviderFault(c.status, c.code); got != c.provider {
			t.Errorf("ProviderFault(%d, %q) = %v", c.status, c.code, got)
		}
		if got := TokenRejected(c.status, c.code); got != c.token {
			t.Errorf("TokenRejected(%d, %q) = %v", c.status, c.code, got)
		}
	}
}

func TestPlace_String(t *testing.T) {
	for p, want := range map[Place]string{Nowhere: "nowhere", Query: "query", JSON: "json", Form: "form", 9: "unknown"} {
		if got := p.String(); got != want {
			t.Errorf("%d: got %q, want %q", p, got, want)
		}
	}
}

var sinkString string

func BenchmarkErrorCode(b *testing.B) {
	body := []byte(`{"code":"too_many_requests","message":"Too many requests. Please try again later.","status":429}`)
	b.ReportAllocs()
	for b.Loop() {
		sinkString = ErrorCode(body)
	}
}
