// A receiver of webhooks that believes only what somebody else's implementation
// of the specification verifies. It says what came, a line each, on its output.
import { createServer } from "node:https";
import { readFileSync } from "node:fs";
import { Webhook } from "standardwebhooks";

const [cert, key] = process.argv.slice(2).map((f) => readFileSync(f));
let secret = "";
process.stdin.on("data", (d) => { secret = d.toString().trim(); console.log(JSON.stringify({ ready: true })); });
const server = createServer({ cert, key }, (req, res) => {
  const parts = [];
  req.on("data", (d) => parts.push(d));
  req.on("end", () => {
    const body = Buffer.concat(parts).toString();
    let said;
    try {
      new Webhook(secret).verify(body, req.headers);
      said = { id: req.headers["webhook-id"], message: JSON.parse(body) };
      res.statusCode = 204;
    } catch (e) {
      said = { wrong: String(e), body };
      res.statusCode = 400;
    }
    console.log(JSON.stringify(said));
    res.end();
  });
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: server.address().port })));
