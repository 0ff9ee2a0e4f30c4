// An agent that speaks HTTP/2 and offers nothing else: `node http2.mjs METHOD URL [BODY]`, with
// Node's own modules. Prints the body, then the status.
import { request } from "node:http";
import { connect } from "node:http2";
import { connect as secure } from "node:tls";

const [method, url, body] = process.argv.slice(2);
const [target, proxy] = [new URL(url), new URL(process.env.HTTPS_PROXY)];
const authority = `${target.hostname}:${target.port || 443}`;
const credentials = Buffer.from(`${proxy.username}:${proxy.password}`).toString("base64");
const tunnel = request({
  host: proxy.hostname,
  port: proxy.port,
  method: "CONNECT",
  path: authority,
  headers: { Host: authority, "Proxy-Authorization": `Basic ${credentials}` },
});
tunnel.on("connect", (_answer, socket) => {
  const options = { socket, servername: target.hostname, ALPNProtocols: ["h2"] };
  const session = connect(target.origin, { createConnection: () => secure(options) });
  const call = session.request({ ":method": method, ":path": target.pathname });
  let status, said = "";
  call.on("response", (headers) => (status = headers[":status"]));
  call.on("data", (chunk) => (said += chunk));
  call.on("end", () => {
    console.log(said);
    console.log(status);
    session.close();
  });
  call.end(body);
});
tunnel.end();
