package web

import (
	"encoding/base64"
	"net/http"
	"strings"

	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/foundation/fault"
)

func (s *site) routeApprovals(mux *http.ServeMux) {
	mux.HandleFunc("GET /approvals", s.page(s.showApprovals))
	mux.HandleFunc("GET /approvals/{id}", s.page(s.showApproval))
	mux.HandleFunc("POST /approvals/{id}/sign", s.page(s.signBegin))
	mux.HandleFunc("POST /approvals/{id}/approve", s.page(s.approve))
	mux.HandleFunc("POST /approvals/{id}/deny", s.page(s.deny))
	mux.HandleFunc("GET /grants/{id}", s.page(s.showGrant))
	mux.HandleFunc("POST /grants/{id}/revoke", s.open(s.revoke))
	mux.HandleFunc("POST /grants/{id}/done", s.page(s.endGrant))
	mux.HandleFunc("POST /grants/{id}/review", s.page(s.review))
}

// approvalLists is what the page Approvals shows.
type approvalLists struct {
	Waiting, Decided []*v1.Approval
	Grants           []*v1.Grant
}

func (s *site) showApprovals(v *visit) error {
	got, err := s.approvals.List(v.ctx, &v1.ListApprovalsRequest{})
	if err != nil {
		return err
	}
	var x approvalLists
	for _, a := range got.Approvals {
		if a.State == "requested" {
			x.Waiting = append(x.Waiting, a)
		} else if len(x.Decided) < 50 {
			x.Decided = append(x.Decided, a)
		}
	}
	if grants, err := s.grants.List(v.ctx, &v1.ListGrantsRequest{OpenOnly: true}); err == nil {
		for _, g := range grants.Grants {
			if g.State != "requested" {
				x.Grants = append(x.Grants, g)
			}
		}
	}
	f := v.frame("Approvals", "approvals")
	return v.show(f, approvalsPage(f, x))
}

func (s *site) showApproval(v *visit) error {
	got, err := s.approvals.Get(v.ctx, &v1.GetApprovalRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	var grant *v1.Grant // what came of it, while it may be seen
	if a := got.Approval; a.Kind == "grant" && a.State == "approved" {
		if x, err := s.grants.Get(v.ctx, &v1.GetGrantRequest{Id: a.Subject}); err == nil {
			grant = x.Grant
		}
	}
	f := v.frame("Request of "+got.Approval.RequesterName, "approvals")
	f.Script = "passkey.js"
	return v.show(f, approvalPage(f, got.Approval, grant))
}

// signBegin starts the ceremony, but not for who may not decide: nobody is
// asked for a passkey in vain.
func (s *site) signBegin(v *visit) error {
	a, err := s.approvals.Get(v.ctx, &v1.GetApprovalRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	if a := a.Approval; a.State == "requested" && !a.MayDecide {
		return fault.New(fault.Denied, "cannot approve %s: %s", a.Id, strings.TrimRight(a.MayNotWhy, "."))
	}
	got, err := s.approvals.SignBegin(v.ctx, &v1.SignBeginRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	return v.answer(ceremony{Options: got.OptionsJson, Ceremony: got.Ceremony})
}

// approve carries the hash of what the approver saw, not of what is there now:
// a request changed in between is refused.
func (s *site) approve(v *visit) error {
	var c ceremony
	if err := v.take(&c); err != nil {
		return err
	}
	hash, err := base64.StdEncoding.DecodeString(c.Hash)
	if err != nil {
		return fault.New(fault.Invalid, "cannot approve: the page sent no hash of the request")
	}
	id := v.r.PathValue("id")
	_, err = s.approvals.Approve(v.ctx, &v1.ApproveRequest{Id: id, SubjectHash: hash, Ceremony: c.Ceremony, ResponseJson: c.Response})
	if err != nil {
		return err
	}
	return v.answer(ceremony{Next: "/approvals/" + id + "?ok=approved"})
}

func (s *site) deny(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := s.approvals.Deny(v.ctx, &v1.DenyRequest{Id: id, Reason: v.form("reason")}); err != nil {
		return err
	}
	return v.goOn("/approvals/"+id, "denied")
}

func (s *site) showGrant(v *visit) error {
	got, err := s.grants.Get(v.ctx, &v1.GetGrantRequest{Id: v.r.PathValue("id")})
	if err != nil {
		return err
	}
	f := v.frame("Grant of "+got.Grant.PersonName, "approvals")
	return v.show(f, grantPage(f, got.Grant))
}

func (s *site) revoke(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := s.grants.Revoke(v.ctx, &v1.RevokeRequest{Id: id, Reason: v.form("reason")}); err != nil {
		return err
	}
	return v.braked("/grants/"+id, "revoked")
}

func (s *site) endGrant(v *visit) error {
	id := v.r.PathValue("id")
	if _, err := s.grants.Done(v.ctx, &v1.DoneRequest{Id: id}); err != nil {
		return err
	}
	return v.goOn("/grants/"+id, "ended")
}

func (s *site) review(v *visit) error {
	id := v.r.PathValue("id")
	_, err := s.grants.Review(v.ctx, &v1.ReviewRequest{Id: id, Verdict: v.form("verdict"), Notes: v.form("notes")})
	if err != nil {
		return err
	}
	return v.goOn("/grants/"+id, "reviewed")
}

// shortHash is enough of a hash for two people to compare by voice.
func shortHash(h []byte) string {
	text := strings.ToUpper(hexOf(h))
	if len(text) > 16 {
		text = text[:16]
	}
	var groups []string
	for len(text) >= 4 {
		groups, text = append(groups, text[:4]), text[4:]
	}
	return strings.Join(groups, " ")
}
