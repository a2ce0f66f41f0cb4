package mask

import (
	"strings"
	"testing"
)

func TestWhatLooksSecretIsTakenOut(t *testing.T) {
	for _, c := range []struct{ text, secret string }{
		{"password=hunter2secret", "hunter2secret"},
		{`msg: {"db_password": "s3cr\"et stuff", "user": "ada"}`, "s3cr"},
		{`{\"apiKey\":\"AbCdEf\"}`, "AbCdEf"},
		{"error: token: abc123def", "abc123def"},
		{"run --client-secret zzz9 --port 80", "zzz9"},
		{"run --client-secret=zzz9 --port 80", "zzz9"},
		{"dial postgres://app:p4ss@db:5432/x failed", "p4ss"},
		{"dial redis://:onlypass@cache:6379", "onlypass"},
		{"dial amqp://u:we@ird:p@host/", "we@ird:p"},
		{"GET /cb?code=1&access_token=qqqwww&x=1", "qqqwww"},
		{"Authorization: Bearer abcdefgh.ijkl", "abcdefgh.ijkl"},
		{"authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"},
		{"Cookie: a=1; sid=deadbeef", "deadbeef"},
		{"Set-Cookie: SID=31d4d96e407aad42; Path=/", "31d4d96e407aad42"},
		{"jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-nature here", "eyJzdWIiOiIxIn0"},
		{"key AKIAIOSFODNN7EXAMPLE here", "AKIAIOSFODNN7EXAMPLE"},
		{"push with ghp_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijklmnop"},
		{"paid with 4111 1111 1111 1111 today", "4111 1111 1111 1111"},
		{"paid with 5500005555555559", "5500005555555559"},
		{"-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"},
		{"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNza", "b3BlbnNza"},
		{"AGE-SECRET-KEY-1QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ", "QQQQQQQQ"},
		{"X-Api-Key: 0123456789abcdef", "0123456789abcdef"},
		{"pin=1234", "1234"},
		{"PGPASSWORD='a b c' psql", "a b c"},
		{"stripe_key=9fJ3kLm2Qx7Zp0Rt5Vw8Yb1Nc4Hd6GsA", "9fJ3kLm2Qx7Zp0Rt5Vw8Yb1Nc4Hd6GsA"},
	} {
		got, n := Text(c.text)
		if strings.Contains(got, c.secret) || n == 0 {
			t.Errorf("%q became %q (%d masked)", c.text, got, n)
		}
		if again, n := Text(got); again != got || n != 0 {
			t.Errorf("masking %q again changed it to %q (%d)", got, again, n)
		}
	}
}

func TestWhatIsHarmlessStays(t *testing.T) {
	for _, s := range []string{
		"GET /orders/4211 200 12ms", "main.(*Server).handle /srv/app/server.go:112", "signal: killed", "author=ada design: new",
		"Failed publickey for ada from 10.0.0.1 port 4242", "http://10.0.0.1:8080/a@b", "user=ada id=1234567890123456", "2026-11-21T14:00:00Z level=info",
		"tokenizer=bpe", "mapping: a to b", "passenger: 4", "compass=north", "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		"java.util.concurrent.locks.AbstractQueuedSynchronizer.acquire", "https://example.org/path?page=2", "key=user:123", "PWD=/srv",
		"order 12345678901234567890", "phone 0041 44 123 45 67 89 01",
	} {
		if got, n := Text(s); got != s || n != 0 {
			t.Errorf("%q became %q (%d masked)", s, got, n)
		}
	}
}

func TestNamesStayAndUnknownValuesGo(t *testing.T) {
	for _, c := range []struct{ name, value, shown, why string }{
		{"PATH", "/usr/bin:/bin", "/usr/bin:/bin", ""},
		{"LC_ALL", "C.UTF-8", "C.UTF-8", ""},
		{"DB_PASSWORD", "x", Hidden(Password), Password},
		{"FROBNICATE", "on", Hidden(Unknown), Unknown},
		{"PORT", "", "", ""},
		{"HOME", "/home/ada", "/home/ada", ""},
		{"PWD", "/srv", "/srv", ""},
		{"LOG_LEVEL", "password=hunter2", "password=" + Hidden(Password), "a part of it"},
		{"DEBUG", "9fJ3kLm2Qx7Zp0Rt5Vw8Yb1Nc4Hd6GsAKe", Hidden(Key), Key},
	} {
		if shown, why := Variable(c.name, c.value); shown != c.shown || why != c.why {
			t.Errorf("%s=%s became %q (%q), want %q (%q)", c.name, c.value, shown, why, c.shown, c.why)
		}
	}
}

func TestCommandLines(t *testing.T) {
	for _, c := range []struct{ in, out string }{
		{"mysql -uapp -phunter2 db", "mysql -uapp -p" + Hidden(Password) + " db"},
		{"/usr/bin/curl -u ada:pw https://x", "/usr/bin/curl -u " + Hidden(Login) + " https://x"},
		{"app --token abc --port 80", "app --token " + Hidden(Password) + " --port 80"},
		{"app --token=abc", "app --token=" + Hidden(Password)},
		{"env PGPASSWORD=abc psql", "env PGPASSWORD=" + Hidden(Password) + " psql"},
		{"app --no-auth --verbose", "app --no-auth --verbose"},
		{"java -Dspring.datasource.password=abc -jar a.jar", "java -Dspring.datasource.password=" + Hidden(Password) + " -jar a.jar"},
		{"redis-cli -a abc ping", "redis-cli -a " + Hidden(Login) + " ping"},
		{"python3 -c print(1)", "python3 -c print(1)"},
	} {
		got, _ := Args(strings.Split(c.in, " "))
		if s := strings.Join(got, " "); s != c.out {
			t.Errorf("%q became %q, want %q", c.in, s, c.out)
		}
	}
}

func TestAKeyOverSeveralLinesIsOneSecret(t *testing.T) {
	var l Lines
	var out []string
	for _, s := range []string{"before", "x -----BEGIN EC PRIVATE KEY-----", "AAAA", "BBBB", "-----END EC PRIVATE KEY----- after", "password=q"} {
		shown, _ := l.Line(s)
		out = append(out, shown)
	}
	if got := strings.Join(out, "|"); strings.Contains(got, "AAAA") || strings.Contains(got, "BBBB") || !strings.Contains(got, "before") ||
		!strings.Contains(got, "after") || strings.Contains(got, "=q") {
		t.Error(got)
	}
}

// FuzzText plants a secret into anything and must not find it again.
func FuzzText(f *testing.F) {
	f.Add("a: ", " b")
	f.Add("{\"x\":", "}")
	f.Add("\\\"'`", "›‹masked: ")
	f.Add("-----BEGIN RSA PRIVATE KEY-----", "@://:")
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "Zq9xW3vT7pL5"
		for _, s := range []string{
			before + "\npassword=" + secret + "\n" + after,
			before + " \"client_secret\": \"" + secret + "\" " + after,
			before + " ghp_" + secret + secret + secret + " " + after,
			before + "\n-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----\n" + after,
		} {
			if strings.Contains(before+after, secret) {
				return
			}
			got, n := Text(s)
			if strings.Contains(got, secret) {
				t.Fatalf("%q became %q (%d)", s, got, n)
			}
		}
	})
}
