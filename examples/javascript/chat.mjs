// Two turns with openai from npm: the first over HTTP, the second over the WebSocket, continuing it.
//
//     cd examples/javascript && npm install && node chat.mjs
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const client = new OpenAI({
  baseURL: process.env.TROUPE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.TROUPE_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;

const stream = await client.responses.create({ model, input: "What is 12 + 30?", temperature: 0, stream: true });
let first;
for await (const event of stream) {
  if (event.type === "response.output_text.delta") process.stdout.write(event.delta);
  if (event.type === "response.completed") first = event.response;
}
process.stdout.write("\n");

const socket = new ResponsesWS(client);
socket.on("error", (error) => {
  console.error(error.message);
  process.exit(1);
});
socket.on("event", (event) => {
  if (event.type === "response.output_text.delta") process.stdout.write(event.delta);
  if (event.type === "response.completed") {
    const { output_tokens, input_tokens_details } = event.response.usage;
    console.log(`\n[${output_tokens} tokens, ${input_tokens_details.cached_tokens} of the prompt cached]`);
    socket.close();
  }
});
socket.send({
  type: "response.create",
  model,
  input: "What is 20 + 3?",
  temperature: 0,
  previous_response_id: first.id,
});
