package web

import (
	"net/http"

	v1 "handrail.dev/handrail/api/handrail/v1"
)

func (s *site) routeVoucherKey(mux *http.ServeMux) {
	mux.HandleFunc("GET /vouchers/key", s.page(s.showVoucherKey))
	mux.HandleFunc("POST /vouchers/key/begin", s.page(s.voucherKeyBegin))
	mux.HandleFunc("POST /vouchers/key/finish", s.page(s.voucherKeyFinish))
}

// keyCeremony is what the page sends to name a key.
type keyCeremony struct {
	Key      string `json:"key"`
	Ceremony string `json:"ceremony"`
	Response string `json:"response"`
}

// showVoucherKey shows which key it is, by the server's own reading of it.
func (s *site) showVoucherKey(v *visit) error {
	key := v.r.URL.Query().Get("key")
	got, err := s.vouchers.KeyBegin(v.ctx, &v1.VoucherKeyBeginRequest{PublicKey: key})
	if err != nil {
		return err
	}
	f := v.frame("A key for vouchers", "hosts")
	f.Script = "passkey.js"
	return v.show(f, voucherKeyPage(f, key, got.Fingerprint))
}

func (s *site) voucherKeyBegin(v *visit) error {
	var c keyCeremony
	if err := v.take(&c); err != nil {
		return err
	}
	got, err := s.vouchers.KeyBegin(v.ctx, &v1.VoucherKeyBeginRequest{PublicKey: c.Key})
	if err != nil {
		return err
	}
	return v.answer(ceremony{Options: got.OptionsJson, Ceremony: got.Ceremony})
}

func (s *site) voucherKeyFinish(v *visit) error {
	var c keyCeremony
	if err := v.take(&c); err != nil {
		return err
	}
	if _, err := s.vouchers.KeyFinish(v.ctx, &v1.VoucherKeyFinishRequest{PublicKey: c.Key, Ceremony: c.Ceremony, ResponseJson: c.Response}); err != nil {
		return err
	}
	return v.answer(ceremony{Next: "/drills?ok=keyed"})
}
