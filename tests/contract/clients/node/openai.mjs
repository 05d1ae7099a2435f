// openai from npm: chat whole and streamed, responses streamed and resumed, the WebSocket, errors; prints JSON.
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 12 + 30?" }];

async function chat() {
  const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
  const stream = await client.chat.completions.create({ model, messages, temperature: 0, stream: true });
  let streamed = "";
  for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
  const helped = await client.chat.completions.stream({ model, messages, temperature: 0 }).finalContent();
  return { whole: whole.choices[0].message.content, streamed, helped };
}

async function responses() {
  const stream = await client.responses.create({ model, input: "What is 20 + 3?", temperature: 0, stream: true });
  let id, text = "";
  for await (const event of stream) {
    if (event.type === "response.created") id = event.response.id;
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  const rest = await client.responses.retrieve(id, { stream: true, starting_after: 5 });
  const numbers = [];
  for await (const event of rest) numbers.push(event.sequence_number);
  const whole = await client.responses.retrieve(id);
  return { text, rest: numbers, whole: whole.output_text };
}

function socket() {
  return new Promise((resolve, reject) => {
    const connection = new ResponsesWS(client);
    let text = "";
    connection.on("error", reject);
    connection.on("event", (event) => {
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.completed") {
        connection.close();
        resolve(text);
      }
    });
    connection.send({ type: "response.create", model, input: "What is 12 + 30?", temperature: 0 });
  });
}

async function refusal() {
  try {
    await client.chat.completions.create({ model: "nobody", messages });
    return null;
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
}

console.log(JSON.stringify({
  chat: await chat(), responses: await responses(), socket: await socket(), refusal: await refusal(),
}));
